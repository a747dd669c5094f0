"""Where a step's time goes, and the one sentence about it."""

from __future__ import annotations

from tiefsee.plan.training.efficiency import TrainEfficiency
from tiefsee.plan.training.failures import Goodput
from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.step import Step
from tiefsee.plan.training.times import piece_seconds

KINDS = {
    "matmul": "dense products", "experts": "routed experts", "attention": "attention", "sparse": "sparse attention",
    "indexer": "sparse attention", "vector": "element by element",
}  # fmt: skip
_ADVICE = {
    "dense products": "arithmetic in dense products limits: a lower precision or faster chips help, links do not",
    "routed experts": "arithmetic in the routed experts limits: a lower precision, more rows per expert (larger "
    "micro-batches) or faster chips help",
    "attention": "attention's arithmetic limits: shorter sequences or a faster kernel help",
    "sparse attention": "attention over gathered keys limits: its kernels reach little of the peak",
    "element by element": "memory bandwidth limits: fused kernels help (norms, residual streams, quantisation)",
    "exchange": "communication that nothing hides limits: {links}; DualPipe-like overlap, more EP inside the near "
    "domain or FP8 dispatch help",
    "bubble": "the pipeline waits: a replica has {m} micro-batches for {pp} stages{virtual}; a larger global batch, "
    "fewer stages or fewer replicas help",
    "update": "the end of the step limits: gradients and weights over {links}",
}


def where(step: Step, e: TrainEfficiency) -> dict[str, float]:
    """Shares of a step on the mean rank; they add up to 1. `exchange` is what was not hidden, of collectives and of the
    host, and the arithmetic that communication beside it takes."""
    seconds = dict.fromkeys([*dict.fromkeys(KINDS.values()), "exchange", "bubble", "update"], 0.0)
    each = step.micro_batches / step.layout.pp
    for index in step.network.order:
        for piece in step.network.kinds[index].pieces:
            f, b, w = piece_seconds(piece, e)
            again = f if step.recompute == "full" or (step.recompute == "selective" and piece.cheap) else 0.0
            seconds[KINDS[piece.kind]] += (f + b + w + again) * each
    arithmetic = sum(seconds.values())
    busy = sum(step.parts[name] for name in ("1F", "1B", "1W", "1F1B"))
    seconds["exchange"] = max(0.0, busy - arithmetic) + step.parts.get("zero", 0.0)
    seconds["bubble"], seconds["update"] = step.parts["bubble"], step.parts["opt"]
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def bottleneck_of(job: TrainJob, step: Step, shares: dict[str, float], good: Goodput) -> str:
    """The largest share, in words; and failures, where they cost more than that."""
    name = max(shares, key=lambda key: shares[key])
    layout = step.layout
    text = _ADVICE[name].format(
        links=", ".join(f"{link.name} {link.bytes_per_s.value / 1e9:.0f} GB/s" for link in job.rank_chip.links),
        m=step.micro_batches, pp=layout.pp, virtual=f" x {layout.virtual}" if layout.virtual > 1 else "",
    )  # fmt: skip
    text = f"{name}, {shares[name]:.0%} of a step: {text}"
    second = sorted(shares, key=lambda key: -shares[key])[1]
    text += f". Next: {second}, {shares[second]:.0%}"
    lost = 1.0 - good.share.value
    if lost > 0.1:
        text += f". Failures take {lost:.0%} of the wall time: one in {good.mtbf_s / 3600:.1f} h"
    return text
