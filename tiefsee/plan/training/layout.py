"""How a training run is laid out over ranks, and which layouts are legal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tiefsee.errors import ConfigError
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Shard, check_shard
from tiefsee.spec.model import MoE

Schedule = Literal["1f1b", "interleaved", "zero-bubble", "dualpipe"]
SCHEDULES: tuple[Schedule, ...] = ("1f1b", "interleaved", "zero-bubble", "dualpipe")
Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class TrainLayout:
    """Ranks: `tp` x `cp` x `dp` x `pp` of them, tensor-parallel ones nearest to one another, stages farthest apart.

    ep              experts over this many of a stage's tp x cp x dp ranks, whatever their attention does (folding, as
                    in Megatron-Core and in V3: PP16, EP64, DP128)
    zero            1 shards optimizer states over DP, 2 gradients too, 3 weights too (FSDP)
    virtual         stages per rank: above 1 with `interleaved` only
    micro_batch     sequences of a micro-batch, on all ranks of a TP x CP group together
    recompute       None: the least that fits
    overlap         expert all-to-all of one micro-batch under another's arithmetic; None: as the stack does it
    accumulation    micro-batches between two flushes of the pipeline; None: all of a step
    offload         optimizer states in the host's memory
    gradients       what gradients are summed and reduced in; None: FP32 as V3 does, BF16 where only that fits
    """

    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1
    cp: int = 1
    zero: int = 1
    virtual: int = 1
    schedule: Schedule = "1f1b"
    micro_batch: int = 1
    recompute: Recompute | None = None
    overlap: bool | None = None
    accumulation: int | None = None
    offload: bool = False
    gradients: Literal["fp32", "bf16"] | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "ep", "pp", "cp", "virtual", "micro_batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; needed is a whole number of 1 or more")
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"zero is {self.zero!r}; needed is 0, 1, 2 or 3")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule is {self.schedule!r}; needed is one of {', '.join(SCHEDULES)}")
        if self.recompute not in (None, "none", "selective", "full"):
            raise ConfigError(f"recompute is {self.recompute!r}; needed is none, selective or full")
        if self.gradients not in (None, "fp32", "bf16"):
            raise ConfigError(f"gradients is {self.gradients!r}; needed is fp32 or bf16")

    @property
    def ranks(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def stage_ranks(self) -> int:
        return self.tp * self.cp * self.dp

    @property
    def expert_dp(self) -> int:
        """Copies of each expert within a stage."""
        return self.stage_ranks // self.ep

    @property
    def gradient_bytes(self) -> float:
        return 2.0 if self.gradients == "bf16" else 4.0

    @property
    def shard(self) -> Shard:
        return Shard(self.tp, self.ep)

    @property
    def chunks(self) -> int:
        """Pieces of the network that a micro-batch passes one after another."""
        return self.pp * self.virtual

    def changed(self, **values: Any) -> TrainLayout:
        return replace(self, **values)


_NAMES = tuple(f.name for f in fields(TrainLayout))
_ALIASES = {"vp": "virtual", "vpp": "virtual", "mbs": "micro_batch", "fsdp": "zero", "zero_stage": "zero"}


def read_layout(table: Mapping[str, Any], num_ranks: int, schedule: str = "1f1b") -> TrainLayout:
    """A layout from a dict of its fields; what is not given follows: dp from the ranks, the schedule from the rest.

    {"pp": 16, "ep": 64} on 2,048 ranks: dp 128, and the `schedule` that a stack runs by itself. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = _ALIASES.get(key, key)
        if name not in _NAMES:
            raise ConfigError(f"{key!r} is no part of a training layout; known are {', '.join(_NAMES)}")
        if value is not None:
            values[name] = value
    if values.get("zero", 1) is True:
        values["zero"] = 3  # "fsdp": true
    others = values.get("tp", 1) * values.get("cp", 1) * values.get("pp", 1)
    if "dp" not in values:
        if not isinstance(others, int) or others < 1 or num_ranks % others:
            raise ConfigError(
                f"tp x cp x pp = {others} does not divide {num_ranks} ranks; give sizes that do, or dp with fewer ranks"
            )
        values["dp"] = num_ranks // others
    if "schedule" not in values:
        two_ended = schedule == "dualpipe" and values.get("pp", 1) > 1 and values.get("pp", 1) % 2 == 0
        values["schedule"] = "interleaved" if values.get("virtual", 1) > 1 else "dualpipe" if two_ended else "1f1b"
    return TrainLayout(**values)


def check_layout(spec: ModelSpec, layout: TrainLayout, sequence: int) -> None:
    """Raises ConfigError that says what does not divide what."""
    check_shard(spec, Shard(layout.tp, 1))
    if layout.stage_ranks % layout.ep:
        raise ConfigError(
            f"ep = {layout.ep} does not divide the {layout.stage_ranks} ranks of a stage "
            f"(tp {layout.tp} x cp {layout.cp} x dp {layout.dp}); experts are spread over those"
        )
    moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)), None)
    experts = moe.n_routed_experts if moe is not None else 1
    if experts % layout.ep:
        raise ConfigError(f"ep = {layout.ep} does not divide {experts} experts; take a divisor")
    pieces = len(spec.layers) + len(spec.mtp_layers)
    if layout.chunks > pieces:
        raise ConfigError(
            f"pp {layout.pp} x virtual {layout.virtual} = {layout.chunks} stages, but there are {pieces} layers"
        )
    if layout.virtual > 1 and layout.schedule != "interleaved":
        raise ConfigError(f"virtual = {layout.virtual} needs schedule interleaved; found {layout.schedule}")
    if layout.schedule == "dualpipe" and layout.pp % 2:
        raise ConfigError(f"DualPipe feeds a pipeline from both ends: pp = {layout.pp} is odd; take an even number")
    if layout.pp > 1 and layout.zero > 1 and layout.schedule == "dualpipe":
        raise ConfigError(f"zero = {layout.zero} with DualPipe would reduce in each micro-batch; take zero = 1")
    if sequence % (2 * layout.cp if layout.cp > 1 else 1):
        raise ConfigError(f"cp = {layout.cp} cuts a sequence into {2 * layout.cp} pieces; {sequence} does not divide")
