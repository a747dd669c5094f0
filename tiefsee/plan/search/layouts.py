"""Every way to lay a worker out on so many chips of a kind.

    attention   tp x dp = chips       tp divides the heads and stays on a link nearer than the fabric, if one joins it
    experts     ep x moe_tp = chips   an expert's width divides into whole blocks of its number format

What differs only in which rank has which number is one layout. Where attention is data-parallel, experts are either
spread over all ranks or split over all of them: what an exchange between groups of ranks that share an expert would
cost is nowhere measured, and a search must not live off a figure that nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, link_for
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats
from tiefsee.spec.model import MoE

# Sizes of a worker: within a node powers of two; from there whole nodes, as deployments have them (9 x 8 = EP72,
# 18 x 8 = EP144, 40 x 8 = EP320).
_NODES = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 18, 20, 24, 32, 36, 40, 48)
LARGEST_TP = 32
_BLOCK = 128  # columns that share a scale in FP8, where the checkpoint does not say


def worker_sizes(chip: Chip, most: int) -> tuple[int, ...]:
    """Chips of one worker, up to `most`."""
    node = max(1, chip.chips_per_node)
    within = [2**n for n in range(12) if 2**n <= node]
    sizes = {*within, *(node * count for count in _NODES)}
    return tuple(sorted(size for size in sizes if size <= most))


def workers_of(
    spec: ModelSpec,
    chip: Chip,
    formats: Formats,
    num_chips: int,
    *,
    imbalance: float | None = None,
    overlap: bool = False,
) -> Iterator[Worker]:
    """All legal layouts of one worker on `num_chips` chips."""
    for tp in _tensor_parallel(spec, chip, num_chips):
        dp = num_chips // tp
        for moe_tp in _expert_splits(spec, num_chips):
            ep = num_chips // moe_tp
            if dp > 1 and ep > 1 and moe_tp > 1:
                continue
            worker = _worker(spec, chip, formats, (tp, dp, ep, moe_tp), imbalance, overlap)
            if worker is not None:
                yield worker


def _worker(
    spec: ModelSpec, chip: Chip, formats: Formats, sizes: tuple[int, int, int, int], imbalance: float | None,
    overlap: bool,
) -> Worker | None:  # fmt: skip
    tp, dp, ep, moe_tp = sizes
    try:
        worker = Worker(spec, chip, formats, tp=tp, dp=dp, ep=ep, moe_tp=moe_tp, overlap=overlap, imbalance=imbalance)
        link_for(chip, worker.num_chips)
    except ConfigError:
        return None
    return worker


def _tensor_parallel(spec: ModelSpec, chip: Chip, num_chips: int) -> Iterator[int]:
    heads = spec.layers[0].attention.num_attention_heads
    for tp in (2**n for n in range(12)):
        if tp > min(num_chips, LARGEST_TP) or num_chips % tp or heads % tp:
            continue
        # Across the fabric all-reduces hold up every layer; that is done only where nothing else is left, by the
        # whole worker (TP16 over two nodes).
        if tp == num_chips or tp <= chip.chips_per_node or link_for(chip, tp).tier != "fabric":
            yield tp


def _expert_splits(spec: ModelSpec, num_chips: int) -> Iterator[int]:
    """How many ranks share an expert."""
    moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)), None)
    if moe is None:
        yield 1
        return
    block = spec.quantisation.block[0] if spec.quantisation is not None else _BLOCK
    for moe_tp in (2**n for n in range(12)):
        if moe_tp > num_chips:
            return
        whole = moe.moe_intermediate_size % moe_tp == 0 and (moe.moe_intermediate_size // moe_tp) % block == 0
        if num_chips % moe_tp == 0 and (whole or moe_tp == 1) and moe.n_routed_experts >= num_chips // moe_tp:
            yield moe_tp


__all__ = ["worker_sizes", "workers_of"]
