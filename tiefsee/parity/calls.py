"""One call of an operator, with all that is needed to make it again on another device: `Call`.

Arguments are kept as what they are to the network: activations as tensors, parameters by name (each device has its
own, as it loaded and converted them), the cache as the rows that the operator may see.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tiefsee.model import Network
from tiefsee.ops import Operators
from tiefsee.ops.view import PagedHistory, Segment
from tiefsee.ops.weight import Weight

# What is no operator of the network: memory, and the inside of `run_experts`.
_OTHERS = {"allocate", "free_bytes", "each_expert", "write_rows", "remarks", "resolve_format", "settle",
           "activation_format"}  # fmt: skip
OPERATORS = tuple(
    name for name, value in vars(Operators).items()
    if name[0] != "_" and name not in _OTHERS and (callable(value) or isinstance(value, staticmethod))
)  # fmt: skip
# Operators that treat each row (the first dim of their first argument) by itself: a few rows stand for all.
BY_ROW = frozenset(OPERATORS) - {"latent_attention", "window_attention", "index_scores", "compress", "pick_keys"}
# Arguments in the network's dtype; all other tensors are float32 or whole numbers on every device.
ACTIVATIONS = {
    "linear": (0,), "grouped_linear": (0,), "rms_norm": (0,), "layer_norm": (0,), "swiglu": (0, 1),
    "rotate_pairs": (0,), "rotate_halves": (0,), "router_scores": (0,), "run_experts": (0,),
    "route": (0,), "pick_keys": (0,), "latent_attention": (0, 1), "index_scores": (0, 2),
    "compress": (0,), "window_attention": (0, 1, 7),
    "hyper_mix": (0,), "hyper_join": (0, 1), "hyper_head": (0,),
}  # fmt: skip
PICKS = {"select_experts": "experts", "select_entries": "entries"}
MAX_ROWS = 32
# Scores in so few steps tie everywhere: the definition takes the lowest index.
TIE_STEPS = 8
# Which argument of an operator is the limit of its SwiGLU.
LIMITS = {"swiglu": 2, "run_experts": 6}
# So many times the limit is what a clamp is given to see whether it is there.
BEYOND_LIMIT = 4.0
# Of the largest expert bias: steps between experts where the bias alone shall decide. Far above float32's rounding.
BIAS_STEP = 1e-4
# Tables of cos and sin are looked at like an operator: by layer, at positions up to the end of the model's context.
ROPE = "rope_table"


@dataclass(frozen=True)
class Parameter:
    """A weight or a bias by its name, and how this device holds it: "plain", "fp8", "fp4" or "int8"."""

    name: str
    kind: str


@dataclass(frozen=True)
class CachedRows:
    """What an attention may read of the cache: of each segment the rows [n, *shape] before (and, in a history, of)
    its tokens."""

    stream: str
    segments: tuple[Segment, ...]
    rows: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Call:
    """`arguments` by position; `outputs` as computed where it was recorded, one or several; None where there is none.

    `probe` names a call that the network did not make: "ties", with scores that were coarsened, to see which of
    equals are taken; "bias", with scores between which the expert bias decides; "every expert", each alone in a row;
    "clamp", with inputs so large that limits are reached.

    Of an operator that treats rows one by one a few of the `num_rows` rows are kept; `whole` repeats them, so that it
    is called with as many rows as the network had: a kernel for a prefill, and its last tile, are not those of a few.
    """

    operator: str
    site: str
    arguments: tuple[Any, ...]
    outputs: tuple[Tensor | None, ...] = field(repr=False)
    probe: str = ""
    num_rows: int = 0
    num_kept: int = MAX_ROWS

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.itemsize for t in tensors_of((self.arguments, self.outputs)))

    def whole(self) -> Call:
        """With all rows: those that were kept, again and again."""
        if self.num_rows <= self.num_kept:
            return self
        index = torch.arange(self.num_rows) % self.num_kept

        def repeated(value: Any) -> Any:
            return value[index] if isinstance(value, Tensor) and value.dim() and len(value) == self.num_kept else value

        return replace(self, arguments=tuple(map(repeated, self.arguments)), outputs=tuple(map(repeated, self.outputs)))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in an argument, however deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, CachedRows):
        return tensors_of(value.rows)
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_of(v)]
    return []


class Parameters:
    """Parameters of a network by name, and names by parameter."""

    def __init__(self, network: Network) -> None:
        self._by_name: dict[str, Tensor | Weight] = {}
        packed = {name: m for name, m in network.named_modules() if isinstance(m, Weight)}
        self._by_name.update(packed)
        # A tied or shared one goes by each of its names.
        plain = network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
        for name, value in (named for of_kind in plain for named in of_kind):
            if name.rpartition(".")[0] not in packed:
                self._by_name[name] = value
        self._names = {id(value): name for name, value in self._by_name.items()}

    def find(self, value: object) -> Parameter | None:
        name = self._names.get(id(value))
        return None if name is None else self.describe(name)

    def describe(self, name: str) -> Parameter:
        value = self._by_name[name]
        return Parameter(name, value.packing.format if isinstance(value, Weight) else "plain")

    def __getitem__(self, name: str) -> Tensor | Weight:
        return self._by_name[name]


def rope_calls(network: Network, play: Callable[[Call], tuple[Tensor | None, ...]]) -> list[Call]:
    """One for each kind of RoPE: tables of the first positions, and of some up to the end of the context."""
    spec = network.spec
    last = spec.max_position_embeddings - 1
    positions = torch.tensor(sorted({min(round(2 ** (i / 2)) - 1, last) for i in range(2 * last.bit_length() + 1)}))
    first: dict[object, int] = {}
    for index, layer in enumerate(spec.all_layers):
        first.setdefault(layer.attention.rope, index)
    calls = [Call(ROPE, f"layer {index}", (index, positions), ()) for index in first.values()]
    return [replace(call, outputs=play(call)) for call in calls]


def bind(operator: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments by position, defaults filled in, as the operator table declares them."""
    static = isinstance(inspect.getattr_static(Operators, operator), staticmethod)
    signature = inspect.signature(getattr(Operators, operator))
    bound = signature.bind(*(() if static else (None,)), *arguments, **named)
    bound.apply_defaults()
    return tuple(bound.arguments.values())[0 if static else 1 :]


def keep(operator: str, site: str, arguments: tuple[Any, ...], result: Any, parameters: Parameters) -> Call:
    """A call as it can be kept: copies on the CPU, of some rows only where rows stand for themselves."""
    first = arguments[0]
    num_rows = len(first) if operator in BY_ROW else 0
    spread = torch.linspace(0, max(0, num_rows - 1), MAX_ROWS).round().long()

    def kept(value: Any) -> Any:
        found = parameters.find(value)
        if found is not None:
            return found
        if isinstance(value, Tensor):
            if num_rows > MAX_ROWS and value.dim() and len(value) == num_rows:
                value = value[spread.to(value.device)]
            return value.detach().to("cpu", copy=True)
        if isinstance(value, nn.Module):
            raise TypeError(f"{operator} at {site} was given a {type(value).__name__} that is no parameter")
        if isinstance(value, list | tuple):
            return [kept(v) for v in value]
        return value

    if any(_is_view(value) for value in arguments):
        arguments = _with_rows(operator, arguments)
    outputs = as_outputs(result)
    return Call(
        operator, site, tuple(_cached(v, kept) for v in arguments), tuple(kept(o) for o in outputs), num_rows=num_rows
    )


def probes(
    call: Call, parameters: Parameters, play: Callable[[Call], tuple[Tensor | None, ...]], done: set[tuple[str, str]]
) -> list[Call]:
    """The same call where it is harder, with the outputs that `play` gives; none where there is nothing to probe.

    What does not depend on the step is asked once: `done` has the operators and sites where it was.
    """
    harder = []
    if call.operator in PICKS and all(o is not None for o in call.outputs):
        harder.append(_with_ties(call))
    if (call.operator, call.site) not in done:
        done.add((call.operator, call.site))
        if call.operator == "select_experts" and isinstance(call.arguments[1], Parameter):
            harder.append(_with_bias_alone(call, parameters))
        if call.operator == "run_experts":
            harder.append(_with_every_expert(call, parameters))
    if call.operator in LIMITS and call.arguments[LIMITS[call.operator]] is not None:
        harder.append(_beyond_limit(call))
    return [replace(h, outputs=tuple(o if o is None else o[: h.num_kept] for o in play(h.whole()))) for h in harder]


def _with_ties(call: Call) -> Call:
    scores, *rest = call.arguments
    spread = scores.abs().amax().clamp(min=1e-30) / TIE_STEPS
    if call.operator == "select_experts":
        rest[0] = None  # no bias: it would tell equals apart
    return replace(call, arguments=((scores / spread).round() * spread, *rest), probe="ties")


def _with_bias_alone(call: Call, parameters: Parameters) -> Call:
    """Scores that lie as far below the bias as to leave an order of small steps, another in each row: first of the
    groups, then of the experts in them."""
    scores, bias, router = call.arguments
    values = parameters[bias.name].data.detach().float().cpu()
    num_experts, generator = len(values), torch.Generator().manual_seed(0)

    def orders(count: int) -> Tensor:
        return torch.stack([torch.randperm(count, generator=generator) for _ in scores])

    groups = orders(router.n_group).repeat_interleave(num_experts // router.n_group, 1) * (num_experts + 1)
    step = BIAS_STEP * values.abs().amax().clamp(min=1e-3)
    leveled = (groups + orders(num_experts)) * step + values.amax() - values
    return replace(call, arguments=(leveled, bias, router), probe="bias")


def _with_every_expert(call: Call, parameters: Parameters) -> Call:
    """A row for each expert, whose other picks weigh nothing: among eight a wrong one would hardly be seen."""
    hidden, experts, weights, *rest = call.arguments
    num_picks, num_experts = experts.shape[1], len(parameters[rest[0].name].data)
    rows = torch.arange(num_experts)
    every = (rows.unsqueeze(1) + torch.arange(num_picks)) % num_experts
    alone = torch.zeros(num_experts, num_picks, dtype=weights.dtype)
    alone[:, 0] = 1.0
    return replace(
        call, arguments=(hidden[rows % len(hidden)], every.to(experts.dtype), alone, *rest), probe="every expert",
        num_rows=num_experts, num_kept=num_experts,
    )  # fmt: skip


def _beyond_limit(call: Call) -> Call:
    first, *rest = call.arguments
    factor = BEYOND_LIMIT * call.arguments[LIMITS[call.operator]] / first.abs().amax().clamp(min=1e-30)
    if call.operator == "swiglu":
        rest[0] = rest[0] * factor
    return replace(call, arguments=(first * factor, *rest), probe="clamp")


def as_outputs(result: Any) -> tuple[Tensor | None, ...]:
    """What an operator gives, one or several."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _is_view(value: Any) -> bool:
    return not isinstance(value, Tensor) and isinstance(value, PagedHistory)


def _with_rows(operator: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The cache view replaced by the rows that this operator may read."""
    place = next(i for i, value in enumerate(arguments) if _is_view(value))
    view, layer = arguments[place], arguments[place + 1]
    if operator in ("latent_attention", "pick_keys"):
        stream = "latent" if operator == "latent_attention" else "index"
        rows = [view.history(stream, layer, i, s.end) for i, s in enumerate(view.segments)]
        cached = CachedRows(stream, tuple(view.segments), tuple(rows))
    elif operator == "window_attention":
        lookback = arguments[place + 2] - 1
        rows = [view.recent("window", layer, i, lookback) for i, _ in enumerate(view.segments)]
        cached = CachedRows("window", tuple(view.segments), tuple(rows))
    else:
        raise TypeError(f"operator {operator} reads the cache; say in parity/calls.py which rows")
    return (*arguments[:place], cached, *arguments[place + 1 :])


def _cached(value: Any, kept: Any) -> Any:
    return replace(value, rows=tuple(kept(r) for r in value.rows)) if isinstance(value, CachedRows) else kept(value)


def cast(call: Call, dtype: torch.dtype) -> tuple[Any, ...]:
    """The call's arguments as a network of `dtype` would have them."""

    def in_dtype(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        return [in_dtype(v) for v in value] if isinstance(value, list) else value

    places = ACTIVATIONS.get(call.operator, ())
    return tuple(in_dtype(v) if i in places else v for i, v in enumerate(call.arguments))
