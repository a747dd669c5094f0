"""FLOPs and bytes of every operator of the family, in closed form (no chip, no time, no torch).

types.py       Cost, Op; the work of a step, number formats, how it is split
attention.py   MLA expanded and absorbed, indexer, compressed attention
ffn.py         dense, router, experts, residuals (mHC), head
model.py       a step of a whole model, a pipeline stage, the MTP layer
training.py    forward, both halves of backward, recomputation
"""

from tiefsee.spec.cost.model import check_shard, layer_ops, mtp_ops, step_ops
from tiefsee.spec.cost.training import TrainOp, training_flops_per_token, training_ops
from tiefsee.spec.cost.types import BYTES, Cost, Formats, Kind, Op, Shard, Work

__all__ = [
    "BYTES", "Cost", "Formats", "Kind", "Op", "Shard", "TrainOp", "Work", "check_shard", "layer_ops", "mtp_ops",
    "step_ops", "training_flops_per_token", "training_ops",
]  # fmt: skip
