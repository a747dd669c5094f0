"""The data of a roofline: one worker's prefill and decode on its chip, as `plan.serving` predicts them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tiefsee.hardware import Chip
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.names.formats import compute_format
from tiefsee.plan.report.charts import Roof, Roofline, RoofPoint
from tiefsee.plan.serving.step import PREFILL_TOKENS, decode_step, prefill_step
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec.cost import Op, Work, step_ops


def roofline(
    worker: Worker, e: Efficiency, *, batch: float, context: float, prompt: float | None = None,
    prefill: Worker | None = None,
) -> Roofline:  # fmt: skip
    """Decode of `batch` requests of the worker at `context` tokens each, and prefill of `prompt` tokens (or `context`)
    on the worker, or on another one of the same chip.

    Times are those of the operators with their launches; collectives have no place under the roofs of a chip.
    """
    prompt, first = min(prompt or context, PREFILL_TOKENS), prefill or worker
    points = [*_prefill_points(first, e, prompt), *_decode_points(worker, e, batch, context)]
    what = f"{_prefill_text(prompt)}, {_decode_text(batch, context)}"
    return _made(worker.chip, what, points, _sizes(first, worker))


def rooflines(
    prefill: Worker, prefill_e: Efficiency, decode: Worker, e: Efficiency, *, batch: float, context: float,
    prompt: float,
) -> tuple[Roofline, ...]:  # fmt: skip
    """Of prefill and decode on workers of their own: one picture where both run on one chip, else one of each."""
    if prefill.chip.name == decode.chip.name:
        return (roofline(decode, e, batch=batch, context=context, prompt=prompt, prefill=prefill),)
    prompt = min(prompt, PREFILL_TOKENS)
    first, second = list(_prefill_points(prefill, prefill_e, prompt)), list(_decode_points(decode, e, batch, context))
    return (
        _made(prefill.chip, _prefill_text(prompt), first, _sizes(prefill, prefill)),
        _made(decode.chip, _decode_text(batch, context), second, _sizes(decode, decode)),
    )


def _made(chip: Chip, what: str, points: Sequence[RoofPoint], sizes: str) -> Roofline:
    used = {compute_format(chip, point.format) for point in points}
    return Roofline(
        title=f"Roofline of {chip.title}: {what}",
        compute=tuple(Roof(name.upper(), figure.value) for name, figure in chip.flops_per_s.items() if name in used),
        memory=(Roof("memory", chip.memory_bytes_per_s.value),),
        points=tuple(points),
        note=f"{sizes}. {_note(chip, points)}".strip(),
    )


def _prefill_text(prompt: float) -> str:
    return f"prefill of {prompt:,.0f} tokens"


def _decode_text(batch: float, context: float) -> str:
    return f"decode of {batch:,.0f} requests at {context:,.0f}"


def _sizes(prefill: Worker, decode: Worker) -> str:
    def of(w: Worker) -> str:
        return f"{w.num_chips} chips, TP {w.tp}, DP {w.dp}, EP {w.ep}"

    return of(decode) if prefill is decode else f"Prefill on {of(prefill)}; decode on {of(decode)}"


def _prefill_points(worker: Worker, e: Efficiency, prompt: float) -> Iterable[RoofPoint]:
    work = Work(prompt, 1.0, 0.0, expert_tokens=prompt * worker.dp)
    return _points(worker, work, "prefill", prefill_step(worker, prompt, 1.0, 0.0).parts(e, eager=True))


def _decode_points(worker: Worker, e: Efficiency, batch: float, context: float) -> Iterable[RoofPoint]:
    each = batch / worker.dp
    work = Work(each, each, context, decode=True, expert_tokens=batch, num_logits=each)
    return _points(worker, work, "decode", decode_step(worker, batch, context).parts(e))


def _points(worker: Worker, work: Work, phase: str, seconds: Mapping[str, float]) -> Iterable[RoofPoint]:
    """Operators of one name are one point: layers of several kinds run them with their own sizes."""
    ops = step_ops(worker.spec, work, worker.formats, worker.shard, imbalance=worker.imbalance or 1.0)
    whole = sum(seconds[name] for name in dict.fromkeys(op.name for op in ops))
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
