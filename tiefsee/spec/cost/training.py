"""Training: forward, backward for the inputs, backward for the weights, and what is computed again.

A product Y = X W costs as much for dX = dY W' and for dW = X' dY as forward; attention has no weights, and its
backward recomputes the scores: 5 products for 2 (FlashAttention-2, arXiv 2307.08691, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tiefsee.errors import ConfigError
from tiefsee.spec.cost.model import mtp_ops, step_ops
from tiefsee.spec.cost.types import BYTES, WHOLE, Cost, Formats, Kind, Op, Shard, Work
from tiefsee.spec.model import ModelSpec

Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class TrainOp:
    """One operator of a training step on one rank: costs of each execution."""

    name: str
    kind: Kind
    format: str
    count: int
    forward: Cost
    backward_input: Cost
    backward_weight: Cost
    recompute: Cost

    @property
    def total(self) -> Cost:
        return self.forward + self.backward_input + self.backward_weight + self.recompute


def training_ops(
    spec: ModelSpec, num_tokens: float, sequence: int, formats: Formats, shard: Shard = WHOLE,
    *, expert_tokens: float | None = None, recompute: Recompute = "selective", with_mtp: bool = True,
    layers: tuple[int, int] | None = None, imbalance: float = 1.0,
) -> tuple[TrainOp, ...]:  # fmt: skip
    """The operators of one micro-batch of `num_tokens` tokens in sequences of `sequence`.

    `recompute`: "selective" is what V3 did (norms and the up-projections of MLA, section 3.2.3 of its report),
    "full" is a whole second forward. Raises ConfigError.
    """
    if recompute not in RECOMPUTES:
        raise ConfigError(f"recompute is {recompute!r}; needed is one of {', '.join(RECOMPUTES)}")
    work = Work(num_tokens, num_tokens / sequence, 0.0, expert_tokens=expert_tokens, num_logits=num_tokens)
    ops = list(step_ops(spec, work, formats, shard, imbalance=imbalance, layers=layers))
    if with_mtp and spec.mtp_layers and (layers is None or layers[1] == len(spec.layers)):
        ops += mtp_ops(spec, work, formats, shard, imbalance=imbalance)
    return tuple(_train(op, recompute) for op in ops)


def _train(op: Op, recompute: Recompute) -> TrainOp:
    forward = op.cost
    if op.kind == "attention":
        backward, weight = forward * 2.5, Cost()
    elif op.kind in ("vector", "indexer"):
        backward, weight = forward, Cost()
    else:
        # Gradients are written in float32 once per micro-batch, beside the weight's own bytes.
        own = forward.weight_bytes / BYTES[op.format]
        backward = forward
        weight = Cost(forward.flops, 0.0, 0.0, forward.activation_bytes + own * BYTES["fp32"])
    again = Cost()
    if recompute == "full" or (recompute == "selective" and (op.kind == "vector" or op.name in _CHEAP)):
        again = forward
    return TrainOp(op.name, op.kind, op.format, op.count, forward, backward, weight, again)


# What V3 computes again instead of keeping.
_CHEAP = ("mla.query", "mla.expand")


def training_flops_per_token(
    spec: ModelSpec, sequence: int = 4096, *, causal: bool = True, with_mtp: bool = False
) -> float:
    """FLOPs of forward and backward per token, as papers count them: 6 per active weight, attention on top.

    V3, 4,096 tokens, causal: 250 GFLOP (ISCA 2025, table 2). Attention's backward is counted as twice its forward
    here (the convention), not 2.5 times. Not causal: every query sees the whole sequence.
    """
    formats = Formats()
    total = 0.0
    for op in training_ops(spec, sequence, sequence, formats, recompute="none", with_mtp=with_mtp):
        forward = op.forward.flops * op.count
        if op.kind == "attention" and not causal:
            forward *= 2 * sequence / (sequence + 1)
        total += 3 * forward
    return total / sequence
