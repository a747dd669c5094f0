"""A side of the comparison by its name: a device of this machine, or "reference", the definition on the CPU."""

from __future__ import annotations

from tiefsee.engine import EngineConfig, EngineCore
from tiefsee.engine.build import build_core
from tiefsee.ops import Operators

REFERENCE = "reference"
MAX_RUNNING = 8
# Enough that a first chunk of a published model is long enough for the expanded form of attention (172 for V3).
STEP_TOKENS = 256


def open_side(
    model: str, device: str, dtype: str, format: str, max_context: int, layout: str | None = None
) -> EngineCore:
    """An engine that computes every position by itself: no prefix cache; it drafts where the checkpoint has an MTP
    layer. Errors are those of `LLM`."""
    config = EngineConfig(
        max_step_tokens=STEP_TOKENS, max_running=MAX_RUNNING, max_context=max_context,
        num_blocks=MAX_RUNNING * -(-max_context // 256), enable_prefix_cache=False, cache_layout=layout,
    )  # fmt: skip
    if device == REFERENCE:
        return build_core(model, "cpu", dtype, format, config, operators=Operators())
    return build_core(model, device, dtype, format, config)
