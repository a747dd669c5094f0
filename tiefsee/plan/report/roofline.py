"""The data of a roofline: one worker's prefill and decode on its chip, as `plan.serving` predicts them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tiefsee.hardware import Chip
from tiefsee.plan.efficiency import Efficiency
from tiefsee.plan.formats import compute_format
from tiefsee.plan.report.charts import Roof, Roofline, RoofPoint
from tiefsee.plan.serving import PREFILL_TOKENS, Worker, decode_step, prefill_step
from tiefsee.spec.cost import Op, Work, step_ops


def roofline(worker: Worker, e: Efficiency, *, batch: float, context: float, prompt: float | None = None) -> Roofline:
    """Decode of `batch` requests of the worker at `context` tokens each, and prefill of `prompt` tokens (or `context`).

    Times are those of the operators with their launches; collectives have no place under the roofs of a chip.
    """
    prompt = min(prompt or context, PREFILL_TOKENS)
    each = batch / worker.dp
    points = [
        *_points(
            worker, Work(prompt, 1.0, 0.0, expert_tokens=prompt * worker.dp), "prefill",
            prefill_step(worker, prompt, 1.0, 0.0).parts(e, eager=True),
        ),
        *_points(
            worker, Work(each, each, context, decode=True, expert_tokens=batch, num_logits=each), "decode",
            decode_step(worker, batch, context).parts(e),
        ),
    ]  # fmt: skip
    used = {compute_format(worker.chip, point.format) for point in points}
    chip = worker.chip
    return Roofline(
        title=f"Roofline of {chip.title}: prefill of {prompt:,.0f} tokens, "
        f"decode of {batch:,.0f} requests at {context:,.0f}",
        compute=tuple(Roof(name.upper(), figure.value) for name, figure in chip.flops_per_s.items() if name in used),
        memory=(Roof("memory", chip.memory_bytes_per_s.value),),
        points=tuple(points),
        note=f"{worker.num_chips} chips, TP {worker.tp}, DP {worker.dp}, EP {worker.ep}. {_note(chip, points)}".strip(),
    )


def _points(worker: Worker, work: Work, phase: str, seconds: Mapping[str, float]) -> Iterable[RoofPoint]:
    """Operators of one name are one point: layers of several kinds run them with their own sizes."""
    ops = step_ops(worker.spec, work, worker.formats, worker.shard, imbalance=worker.imbalance or 1.0)
    whole = sum(seconds[name] for name in {op.name for op in ops})
    groups: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        groups[op.name].append(op)
    for name, group in groups.items():
        flops = sum(op.count * op.cost.flops for op in group)
        traffic = sum(op.count * op.cost.bytes for op in group)
        yield RoofPoint(
            name, phase, group[0].format, flops / traffic if traffic else 0.0, flops / seconds[name], seconds[name],
            seconds[name] / whole,
        )  # fmt: skip


def _note(chip: Chip, points: Iterable[RoofPoint]) -> str:
    """Formats that the chip lacks, and what they run as."""
    lacking = sorted({p.format for p in points if not chip.has(p.format)})
    into = ", ".join(f"{name} runs as {compute_format(chip, name)}" for name in lacking)
    return f"{chip.title} has no {', '.join(lacking)}: {into}." if lacking else ""
