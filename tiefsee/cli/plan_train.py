"""`tiefsee plan train`: what pretraining would take on a cluster. Answers without torch."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from typing import Any

from tiefsee.cli.plan_report import add_report_options, check_report_options, deliver
from tiefsee.errors import ConfigError

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
    add_report_options(parser)


def run(options: argparse.Namespace) -> int:
    from tiefsee.hardware import parse_fleet
    from tiefsee.plan.training.answer import TrainingAnswer
    from tiefsee.plan.training.plan import plan_training
    from tiefsee.plan.training.scaling import scaling

    check_report_options(options)
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
        job, layout_of(options.layout) if options.layout else None, date=options.date, usd_per_hour=options.price,
        against=against, storage_bytes_per_s=storage,
    )  # fmt: skip
    points = scaling(job, _counts(options.scaling, count), options.date) if options.scaling else []
    command = "tiefsee " + shlex.join(sys.argv[1:])
    found = TrainingAnswer(plan, against, points)
    return deliver(found.document(command=command, date=datetime.date.today().isoformat()), options)


def _job(options: argparse.Namespace, chip: Any, count: int, alternative: bool = False) -> Any:
    """The job on given chips; an alternative runs in its own best precision and stack."""
    from tiefsee.plan.names.models import find_spec
    from tiefsee.plan.training.job import make_job, recipe_of

    spec = find_spec(options.model)
    sequence = recipe_of(spec).sequence if options.sequence is None else options.sequence
    if sequence < 1:
        raise ConfigError(f"--sequence is {sequence}; needed is a whole number of 1 or more")
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


def layout_of(text: str) -> dict[str, Any]:
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
