"""Which number formats a deployment runs in, on a chip that may lack some of them."""

from __future__ import annotations

from dataclasses import replace

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip
from tiefsee.spec.cost import Formats

# What a precision means: dense products, experts, cache, attention. NVFP4 checkpoints keep its projections in 8 bits.
PRECISIONS = {
    "bf16": Formats("bf16", "bf16"),
    "fp8": Formats("fp8", "fp8"),
    "fp4": Formats("fp8", "fp4", cache="fp8", attention="fp8"),
    "int8": Formats("int8", "int8"),
    "w4a8": Formats("int8", "fp4"),
}
CACHE_FORMATS = ("bf16", "fp8", "int8")
ALIASES = {
    "w8a8": "int8", "w8a8c8": "int8", "nvfp4": "fp4", "mxfp4": "fp4", "mxfp8": "fp8", "fp8_block": "fp8",
    "bfloat16": "bf16",
}  # fmt: skip
# What a chip multiplies in if it lacks the format of the weights: they are converted at load, or dequantised.
_NEXT = {"fp4": "fp8", "fp8": "int8", "int8": "bf16", "bf16": "fp32", "fp32": "bf16"}


def formats_of(precision: str, kv_precision: str = "") -> Formats:
    """Raises ConfigError for a name that means nothing. The cache is in BF16 unless `kv_precision` says otherwise.

    Over a cache in FP8 attention multiplies in FP8, as FlashMLA's (pull request 82) and TensorRT-LLM's kernels do;
    engines that dequantise instead are slower than that.
    """
    name = precision.lower()
    name = ALIASES.get(name, name)
    if name not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; needed is one of {', '.join((*PRECISIONS, *ALIASES))}")
    if not kv_precision:
        return PRECISIONS[name]
    if kv_precision.lower() not in CACHE_FORMATS:
        raise ConfigError(f"the cache's format is {kv_precision!r}; needed is one of {', '.join(CACHE_FORMATS)}")
    cache = kv_precision.lower()
    return replace(PRECISIONS[name], cache=cache, attention="fp8" if cache == "fp8" else "bf16")


def usual_precision(chip: Chip) -> str:
    """What DeepSeek's checkpoints are served in on a chip: FP8 where it has it, else INT8, else BF16."""
    return next((name for name in ("fp8", "int8", "bf16") if chip.has(name)), "bf16")


def compute_format(chip: Chip, number_format: str) -> str:
    """The format that products of such weights run in on this chip: the nearest one that it has."""
    seen = number_format
    for _ in range(5):
        # An integer unit that is all but absent (B300: 153 TFLOP/s) is no home for converted weights.
        if chip.has(seen) and not (seen == "int8" and number_format != "int8" and chip.has("fp8")):
            return seen
        seen = _NEXT[seen]
    return next(iter(chip.flops_per_s))


def conversion_note(chip: Chip, formats: Formats) -> str | None:
    """What a user has to know about the formats that this chip lacks."""
    lacking = sorted({f for f in (formats.linear, formats.experts) if not chip.has(f)})
    if not lacking:
        return None
    into = ", ".join(f"{f} runs as {compute_format(chip, f)}" for f in lacking)
    return f"{chip.name} lacks {', '.join(lacking)}: {into}"
