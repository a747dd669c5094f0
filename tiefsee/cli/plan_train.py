"""`tiefsee plan train`: what pretraining would take on a cluster. Answers without torch."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from tiefsee.plan.training.plan import TrainingPlan
    from tiefsee.plan.training.scaling import ScalingPoint

# What chips without a public price are compared with, unless something else is named.
AGAINST = "h800:2048"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="preset (v3, v4-pro, ..), folder, config.json or hub id")
    parser.add_argument("--chips", required=True, metavar="CHIP:COUNT", help="for example h800:2048 or mychip.toml:256")
    parser.add_argument("--tokens", type=float, help="tokens to train on (default: the model's own recipe)")
    parser.add_argument("--sequence", type=int, help="tokens of a sequence (default: the recipe's)")
    parser.add_argument("--global-batch", type=int, metavar="SEQUENCES", help="sequences of a step")
    parser.add_argument("--global-batch-tokens", type=float, metavar="TOKENS", help="the same in tokens")
    parser.add_argument("--precision", help="bf16, fp8 (mxfp8), fp4 (nvfp4); default: fp8 where the chip has it")
    parser.add_argument("--optimizer", choices=("adamw", "muon"))
    parser.add_argument("--no-mtp", action="store_true", help="train without the MTP layer")
    parser.add_argument("--imbalance", type=float, default=1.0, help="the fullest rank's routed tokens over the mean's")
    parser.add_argument("--layout", metavar="pp=16,ep=64,..", help="sizes in ranks; default: the best is looked for")
    parser.add_argument("--stack", help="software: today, deepseek, megatron, automodel, torchtitan-npu, mindspeed")
    parser.add_argument("--date", help="ISO date of the software")
    parser.add_argument("--price", type=float, metavar="USD", help="per chip and hour, instead of the catalogue's")
    parser.add_argument(
        "--against", metavar="CHIP:COUNT", help=f"break-even price against these (default without a price: {AGAINST})"
    )
    parser.add_argument("--storage", metavar="BYTES/S", help="bandwidth of checkpoint storage per chip, as in 0.25GB/s")
    parser.add_argument(
        "--scaling", nargs="?", const="auto", metavar="N,N,..", help="the same job on other counts of chips"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    from tiefsee.hardware import parse_fleet
    from tiefsee.plan.training.plan import plan_training
    from tiefsee.plan.training.report import to_json
    from tiefsee.plan.training.scaling import scaling

    chip, count = parse_fleet(options.chips)
    job = _job(options, chip, count)
    storage = _storage(options)
    named = options.against or (AGAINST if chip.usd_per_hour is None and options.price is None else None)
    against = None
    if named is not None:
        other, number = parse_fleet(named)
        against = plan_training(_job(options, other, number, alternative=True), storage_bytes_per_s=storage)
        if against.usd is None:
            raise ConfigError(f"{named} has no public price either; give --against a chip that has one, or --price")
    plan = plan_training(
        job, _layout(options.layout) if options.layout else None, date=options.date, usd_per_hour=options.price,
        against=against, storage_bytes_per_s=storage,
    )  # fmt: skip
    points = scaling(job, _counts(options.scaling, count), options.date) if options.scaling else []
    if options.json:
        answer = to_json(plan)
        if against is not None:
            answer["alternative"] = to_json(against)
        if points:
            answer["scaling"] = [_scaling_json(point) for point in points]
        print(json.dumps(answer, indent=2))
    else:
        from rich.console import Console

        show(Console(), plan, against, points)
    return 0


def _job(options: argparse.Namespace, chip: Any, count: int, alternative: bool = False) -> Any:
    """The job on given chips; an alternative runs in its own best precision and stack."""
    from tiefsee.plan.models import find_spec
    from tiefsee.plan.training.job import make_job, recipe_of

    spec = find_spec(options.model)
    sequence = options.sequence or recipe_of(spec).sequence
    batch = options.global_batch
    if options.global_batch_tokens is not None:
        if batch is not None:
            raise ConfigError("found --global-batch and --global-batch-tokens; give one of them")
        batch = max(1, round(options.global_batch_tokens / sequence))
    return make_job(
        options.model, spec, chip, count, sequence=sequence, global_batch=batch, tokens=options.tokens,
        precision=None if alternative else options.precision, optimizer=options.optimizer,
        with_mtp=not options.no_mtp, imbalance=options.imbalance, stack=None if alternative else options.stack,
    )  # fmt: skip


def _storage(options: argparse.Namespace) -> float:
    from tiefsee.plan.training.failures import STORAGE_BYTES_PER_S
    from tiefsee.units import parse_quantity

    return STORAGE_BYTES_PER_S if options.storage is None else parse_quantity(options.storage, "bytes/s")


def _layout(text: str) -> dict[str, Any]:
    """`pp=16,ep=64,schedule=dualpipe` -> a dict."""
    found: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if not name or not value:
            raise ConfigError(f"--layout has {item!r}; needed is name=value, as in pp=16,ep=64,schedule=dualpipe")
        words = {"true": True, "false": False}
        found[name] = int(value) if value.isdigit() else words.get(value.lower(), value)
    return found


def _counts(text: str, count: int) -> list[int]:
    if text == "auto":
        return sorted({max(1, round(count * share)) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)})
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--scaling has {text!r}; needed are counts of chips, as in 1024,4096,16384")
    return [int(part) for part in parts]


def _scaling_json(point: ScalingPoint) -> dict[str, Any]:
    from tiefsee.plan.training.report import digits, layout_json

    answer: dict[str, Any] = {"num_chips": point.num_chips}
    if point.plan is None:
        return answer | {"error": point.error}
    rates = ("tokens_per_s", "tokens_per_s_per_chip", "useful_tokens_per_s_per_chip")
    for name in (*rates, "mfu", "goodput", "efficiency"):
        answer[name] = digits(getattr(point, name))
    answer["losses"] = {name: digits(value, 2) for name, value in point.losses.items()}
    return answer | {"why": point.why, "layout": layout_json(point.plan.step), "days": digits(point.plan.days.value)}


def show(console: Console, plan: TrainingPlan, against: TrainingPlan | None, points: list[ScalingPoint]) -> None:
    """The answer in tables."""
    from rich.table import Table

    job, step = plan.job, plan.step
    console.print(
        f"[bold]{job.model}[/] on {job.num_chips:,} x {job.chip.title}: {job.tokens / 1e12:g} T tokens in "
        f"{job.precision}, {job.global_batch:,} sequences of {job.sequence:,} a step, {job.optimizer}"
    )
    table = Table("", "value", "80 % range", box=None, pad_edge=False)
    for name, value, low, high in _rows(plan):
        table.add_row(name, value, f"{low} to {high}")
    console.print(table)
    layout = step.layout
    console.print(
        f"\nlayout      tp {layout.tp}, cp {layout.cp}, ep {layout.ep}, pp {layout.pp}"
        f"{f' x {layout.virtual}' if layout.virtual > 1 else ''}, dp {layout.dp:,}, zero {layout.zero}, "
        f"{layout.schedule}, micro-batch {layout.micro_batch}, recompute {step.recompute}; {step.micro_batches} "
        f"micro-batches a step; {step.memory.total / 1e9:.0f} of {step.memory.available / 1e9:.0f} GB"
    )
    parts = ", ".join(f"{name} {value:.3g}" for name, value in step.parts.items())
    console.print(f"step        {parts} s")
    shares = sorted(plan.where.items(), key=lambda item: -item[1])
    console.print("spent on    " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005))
    good = plan.goodput
    console.print(
        f"failures    {good.failures_per_day.value:.2g} a day; a save of {good.checkpoint_bytes / 1e12:.1f} TB every "
        f"{good.interval_s / 60:.0f} min; restart {good.restart_s / 60:.0f} min"
    )
    console.print(f"bottleneck  {plan.bottleneck}")
    if against is not None and plan.break_even_usd_per_hour is not None and against.usd is not None:
        even = plan.break_even_usd_per_hour
        console.print(
            f"money       {plan.against} would take {against.days.value:,.0f} days and "
            f"{against.usd.value / 1e6:,.3g} M USD; {job.chip.name} breaks even at {even.value:.2g} USD per card and "
            f"hour ({even.low:.2g} to {even.high:.2g})"
        )
    for point in points:
        console.print(_scaling_line(point))
    for note in plan.notes:
        console.print(f"[dim]note        {note}[/]")
    for source in plan.sources:
        console.print(f"[dim]source      {source}[/]")


def _rows(plan: TrainingPlan) -> list[tuple[str, str, str, str]]:
    """Names and figures, to the digits that their ranges carry."""
    mfu, rows = plan.mfu, []
    figures = [
        ("step", plan.step_s, 1.0, "s"), ("tokens/s per chip", plan.tokens_per_s_per_chip, 1.0, ""),
        ("MFU causal, of BF16 peak", mfu["causal_bf16"], 100, "%"),
        ("MFU non-causal, of BF16 peak", mfu["non_causal_bf16"], 100, "%"),
        (f"MFU causal, of {plan.job.precision} peak", mfu["causal_stated"], 100, "%"),
        ("useful wall time", plan.goodput.share, 100, "%"), ("days", plan.days, 1.0, ""),
        ("chip hours", plan.chip_hours, 1e-6, "M"),
    ]  # fmt: skip
    if plan.usd is not None:
        figures.append(("USD", plan.usd, 1e-6, "M"))
    for name, e, factor, unit in figures:
        texts = [f"{x * factor:,.{3 if x * factor < 1000 else 4}g} {unit}".strip() for x in (e.value, e.low, e.high)]
        rows.append((f"{name} [dim]({e.grade})[/]", *texts))
    return rows  # type: ignore[return-value]


def _scaling_line(point: ScalingPoint) -> str:
    if point.plan is None:
        return f"scaling     {point.num_chips:>9,} chips: {point.error}"
    return (
        f"scaling     {point.num_chips:>9,} chips: {point.plan.days.value:>8,.0f} days, MFU {point.mfu:.0%}, goodput "
        f"{point.goodput:.0%}, per chip {point.efficiency:.0%} of the smallest ({point.why})"
    )
