"""What is to be trained, on what, and with which batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure, chip_names, find_chip
from tiefsee.plan.names.formats import ALIASES, PRECISIONS, formats_of
from tiefsee.plan.training.activations import activation_bytes
from tiefsee.plan.training.layout import Recompute
from tiefsee.plan.training.parameters import Parameters, unit_parameters
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats

Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Recipe:
    """The published recipe of a kind of model: what a job takes where nothing is said; `date` of publication."""

    sequence: int
    global_batch_tokens: float
    tokens: float
    optimizer: Optimizer
    date: str
    source: str


_V4 = "DeepSeek-V4 report, section 4.2.2 (4K, then 16K)"
# By model_type; V4 by size: Flash has 43 layers.
_V3 = Recipe(4096, 15360 * 4096.0, 14.8e12, "adamw", "2024-12", "DeepSeek-V3 report, arXiv 2412.19437, section 4.2")
RECIPES = {
    "deepseek_v2": Recipe(4096, 9216 * 4096.0, 8.1e12, "adamw", "2024-05", "DeepSeek-V2, arXiv 2405.04434, sec. 3.1.2"),
    "deepseek_v3": _V3,
    "deepseek_v32": _V3,
    "deepseek_v4": Recipe(16384, 94.4e6, 33e12, "muon", "2026-04", _V4),
    "deepseek_v4_flash": Recipe(16384, 75.5e6, 32e12, "muon", "2026-04", _V4),
}


def recipe_of(spec: ModelSpec) -> Recipe:
    small = spec.model_type == "deepseek_v4" and len(spec.layers) < 50
    return RECIPES.get("deepseek_v4_flash" if small else spec.model_type, _V3)


@dataclass(frozen=True, eq=False)
class TrainJob:
    """`num_chips` of `chip` as the catalogue counts them; `rank_chip` is what one rank runs on, and `ranks_per_chip`
    how many of those a chip has: two for an Ascend 910C, whose dies are ranks of their own.

    `stack` None is a good stack of today. `imbalance` is the fullest rank's routed tokens over the mean's.
    """

    model: str
    spec: ModelSpec
    chip: Chip
    num_chips: int
    rank_chip: Chip
    ranks_per_chip: int
    sequence: int
    global_batch: int
    tokens: float
    precision: str
    optimizer: Optimizer = "adamw"
    with_mtp: bool = True
    imbalance: float = 1.0
    stack: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def num_ranks(self) -> int:
        return self.num_chips * self.ranks_per_chip

    @property
    def formats(self) -> Formats:
        return formats_of(self.precision)

    @cached_property
    def parameters(self) -> tuple[Parameters, ...]:
        """By unit: embedding, layers, MTP, head."""
        return unit_parameters(self.spec, self.with_mtp)

    @cached_property
    def total_parameters(self) -> Parameters:
        return sum(self.parameters, Parameters())

    @cached_property
    def activation_bytes(self) -> dict[Recompute, float]:
        """Kept per token for all layers, by what is recomputed."""
        return activation_bytes(self.spec, self.formats, self.with_mtp)

    @property
    def global_batch_tokens(self) -> float:
        return float(self.global_batch) * self.sequence


def make_job(
    model: str, spec: ModelSpec, chip: Chip, num_chips: int, *, sequence: int | None = None,
    global_batch: int | None = None, tokens: float | None = None, precision: str | None = None,
    optimizer: Optimizer | None = None, with_mtp: bool = True, imbalance: float = 1.0, stack: str | None = None,
    package_ranks: bool = False,
) -> TrainJob:  # fmt: skip
    """A job, with the published recipe where nothing is said. `global_batch` counts sequences. Raises ConfigError.

    `package_ranks`: one rank per package even where its dies are ranks in practice (an approximation).
    """
    recipe = recipe_of(spec)
    sequence = recipe.sequence if sequence is None else sequence
    _whole("sequence", sequence, 1, spec.max_position_embeddings)
    _whole("num_chips", num_chips, 1, 10_000_000)
    batch = max(1, round(recipe.global_batch_tokens / sequence)) if global_batch is None else global_batch
    _whole("global batch (sequences)", batch, 1, 100_000_000)
    tokens = recipe.tokens if tokens is None else tokens
    if not 0 < tokens <= 1e18:
        raise ConfigError(f"tokens is {tokens:g}; needed is a number above 0 and at most 1e18")
    if optimizer not in (None, "adamw", "muon"):
        raise ConfigError(f"optimizer is {optimizer!r}; needed is adamw or muon")
    if not 1.0 <= imbalance <= 100:
        raise ConfigError(f"imbalance is {imbalance:g}; it is the fullest rank's load over the mean's, 1 or more")
    rank_chip, per = (chip, 1) if package_ranks else split_package(chip)
    name = training_precision(precision, rank_chip)
    notes = [] if precision is not None else [f"precision {name}: what DeepSeek trains in, as far as the chip has it"]
    if per > 1:
        notes.append(f"ranks are dies: {per} to a {chip.name}, with the figures of {rank_chip.name}")
    elif chip.per == "package" and chip.dies > 1 and chip.vendor == "huawei":
        notes.append(f"a rank is a whole {chip.name} of {chip.dies} dies: the catalogue has no figures of one die")
    return TrainJob(
        model, spec, chip, num_chips, rank_chip, per, sequence, batch, float(tokens), name,
        optimizer or recipe.optimizer, with_mtp and bool(spec.mtp_layers), imbalance, stack, tuple(notes),
    )  # fmt: skip


def split_package(chip: Chip) -> tuple[Chip, int]:
    """What one rank runs on. A package whose die has an entry (`NAME-die`) is as many ranks as it has dies.

    A package that was changed (its clocks, say) gets a die that is changed likewise.
    """
    name = f"{chip.name}-die"
    if not (chip.per == "package" and chip.dies > 1 and name in chip_names()):
        return chip, 1
    die, known = find_chip(name), find_chip(chip.name)
    return (die if chip is known else _like(die, chip, known)), chip.dies


def _like(die: Chip, chip: Chip, known: Chip) -> Chip:
    """The die with each figure in the ratio of the package's to that of the catalogue's package."""

    def scaled(own: Figure, now: Figure, then: Figure) -> Figure:
        k = now.value / then.value
        return replace(own, value=own.value * k, low=own.low * k, high=own.high * k)

    links = []
    for link in die.links:
        now, then = (
            next((x for x in c.links if x.tier == link.tier), c.links[0]) for c in (chip, known)
        )  # between dies: as the nearest link of the package
        links.append(
            replace(
                link, bytes_per_s=scaled(link.bytes_per_s, now.bytes_per_s, then.bytes_per_s),
                latency_s=scaled(link.latency_s, now.latency_s, then.latency_s),
            )
        )  # fmt: skip
    peaks = {
        name: scaled(peak, chip.flops_per_s[name], known.flops_per_s[name])
        for name, peak in die.flops_per_s.items()
        if name in chip.flops_per_s and name in known.flops_per_s
    }
    return replace(
        die, flops_per_s=peaks, links=tuple(links),
        memory_bytes=scaled(die.memory_bytes, chip.memory_bytes, known.memory_bytes),
        memory_bytes_per_s=scaled(die.memory_bytes_per_s, chip.memory_bytes_per_s, known.memory_bytes_per_s),
    )  # fmt: skip


def training_precision(precision: str | None, chip: Chip) -> str:
    """fp8 where the chip has it, else bf16. What is served in INT8 is not trained in it. Raises ConfigError."""
    if precision is None:
        return "fp8" if chip.has("fp8") else "bf16"
    name = precision.lower().replace("_", "-")
    if name.startswith(("fp8", "mxfp8", "hif8", "hifloat8")):
        name = "fp8"
    name = ALIASES.get(name, name)
    if name not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; needed is one of bf16, fp8, fp4 (mxfp8, nvfp4 are of these)")
    if name in ("int8", "w4a8"):
        raise ConfigError(f"precision is {precision!r}; nobody trains DeepSeek models in INT8; take bf16")
    formats = PRECISIONS[name]
    lacking = sorted({f for f in (formats.linear, formats.experts) if not chip.has(f)})
    if lacking:
        raise ConfigError(
            f"{chip.name} does not multiply in {', '.join(lacking)}; it has {', '.join(chip.flops_per_s)}. "
            "Train in bf16 there, or take another chip"
        )
    return name


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; needed is a whole number from {low:,} to {high:,}")
