"""`tiefsee check parity`: do two devices answer alike? Status 0 if so, 1 if not, 2 if they could not be compared.

tiefsee check parity --model M --device reference --device cpu
tiefsee check parity --model M --device cpu --record cpu.safetensors        on one machine
tiefsee check parity --model M --device cuda --against cpu.safetensors      on another
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tiefsee.errors import ConfigError, TiefseeError
from tiefsee.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from tiefsee.parity.recording import Recording
    from tiefsee.parity.report import Report


COULD_NOT_COMPARE = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder, hub id or bundled model")
    parser.add_argument(
        "--device", action="append", required=True, metavar="DEVICE",
        help="reference (plain torch on the CPU), cpu, cuda, npu, ..; twice: the first is what the second is held to",
    )  # fmt: skip
    parser.add_argument("--record", metavar="FILE", help="write what the one device says, to compare elsewhere")
    parser.add_argument("--against", metavar="FILE", help="hold the one device to a recording")
    parser.add_argument(
        "--prompts", metavar="FILE", help="one a line, or .jsonl with prompt or tokens (default: built in)"
    )
    parser.add_argument("--long", type=int, metavar="TOKENS", help="of the built-in long prompt (default: 600, or more "
                        "where an indexer chooses later)")  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16; A,B for each side its own")
    parser.add_argument("--format", default="auto", help="as of run; A,B for each side its own")
    parser.add_argument("--cache-layout", help="of the device that is judged (default: its own)")
    parser.add_argument("--max-context", type=int, default=4096)
    parser.add_argument("--layers", choices=("ends", "all"), default="ends", help="whose operators are looked at: the "
                        "first and last layer of each kind, or all")  # fmt: skip
    parser.add_argument("--record-limit", default="1GB", help="most bytes of operators' inputs and outputs")
    parser.add_argument(
        "--tolerance", action="append", default=[], metavar="FORMAT.LIMIT=NUMBER",
        help="another limit, such as bfloat16.operator=0.02; see docs/parity.md",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    try:
        return _compare(options)
    except TiefseeError as error:
        said = str(error)
        print(f"tiefsee: {said}", file=sys.stderr)
    except Exception as error:  # what a device may throw at us must not look like a comparison that failed
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
    if options.json:
        from tiefsee.parity.report import REPORT_VERSION

        print(json.dumps({"version": REPORT_VERSION, "passed": None, "error": said}))
    return COULD_NOT_COMPARE


def _compare(options: argparse.Namespace) -> int:
    devices = options.device
    files = [name for name in ("record", "against") if getattr(options, name) is not None]
    if len(devices) + len(files) != 2 or len(files) == 2:
        found = ", ".join([f"{len(devices)} of --device", *(f"--{name}" for name in files)])
        raise ConfigError(f"found {found}; needed two devices, or one with --record FILE, or one with --against FILE")
    for name in ("prompts", "long") if options.against else ():
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} has no meaning with --against: prompts are those of the recording")
    from tiefsee.parity.tolerances import overridden

    tolerances = overridden(options.tolerance)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    recording = _recording(options)
    if options.record:
        size = recording.save(Path(options.record))
        facts = {
            "file": options.record, "calls": len(recording.calls), "prompts": len(recording.prompts), "bytes": size,
            "left_out": recording.num_left_out,
        }  # fmt: skip
        if options.json:
            print(json.dumps(facts))
            return 0
        print("{file}: {calls} calls and {prompts} prompts, {size}".format(**facts, size=format_bytes(size)))
        if recording.num_left_out:
            print(f"{recording.num_left_out} calls were left out: --record-limit is {options.record_limit}")
        return 0
    from tiefsee.parity.gate import compare

    report = compare(
        recording, _open(options, devices[-1], last=True), tolerances, control=_is_control(options, devices)
    )
    print(json.dumps(report.to_json(), indent=2)) if options.json else show(report)
    return 0 if report.passed else 1


def _is_control(options: argparse.Namespace, devices: list[str]) -> bool:
    """Whether both sides are one and the same, which then must be equal."""
    alike = all(_of_side(v, False) == _of_side(v, True) for v in (options.dtype, options.format))
    return len(devices) == 2 and devices[0] == devices[1] and alike and options.cache_layout is None


def _recording(options: argparse.Namespace) -> Recording:
    """What the device is held to: read from a file, or recorded now on the first device."""
    from tiefsee.parity.gate import record
    from tiefsee.parity.prompts import built_in, from_file
    from tiefsee.parity.recording import Recording
    from tiefsee.units import parse_bytes

    if options.against:
        return Recording.load(Path(options.against))
    core = _open(options, options.device[0], last=False)
    prompts = from_file(Path(options.prompts), core) if options.prompts else built_in(core, options.long)
    recording = record(
        core, prompts, model=str(options.model), limit_bytes=parse_bytes(options.record_limit),
        all_layers=options.layers == "all",
    )  # fmt: skip
    del core
    gc.collect()  # the other side needs the room
    return recording


def _open(options: argparse.Namespace, device: str, *, last: bool):  # type: ignore[no-untyped-def]
    from tiefsee.parity.sides import open_side

    dtype, format = (_of_side(getattr(options, name), last) for name in ("dtype", "format"))
    core = open_side(options.model, device, dtype, format, options.max_context, options.cache_layout if last else None)
    for note in core.notes:
        print(f"{device}: {note}", file=sys.stderr)
    return core


def _of_side(value: str, last: bool) -> str:
    """ "A,B" is A for the reference and B for the device; one value is for both."""
    parts = value.split(",")
    if len(parts) > 2:
        raise ConfigError(f"{value!r} names {len(parts)} values; needed one, or two with a comma between")
    return parts[-1 if last else 0]


# ------------------------------------------------------------------------------------------ the table


def show(report: Report) -> None:
    """The report for people: what was compared, operator by operator, prompt by prompt, the verdict."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    sides = (("held to", report.reference), ("judged", report.device))
    for what, side in sides:
        weights = ", ".join(f"{n} {kind}" for kind, n in side["weights"].items()) or "plain"
        console.print(
            f"{what}: {side['device']} ({side['operators']}), {side['dtype']}, cache {side['cache_dtype']} as "
            f"{side['layout']}, weights {weights}", highlight=False,
        )  # fmt: skip
    console.print(_operators(report))
    console.print(_prompts(report))
    if report.device_drafted is not None and report.reference_drafted is not None:
        told = (f"{d.accepted} of {d.drafted}" for d in (report.reference_drafted, report.device_drafted))
        console.print("drafts that were right: {} there, {} here".format(*told), highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False)
    color = "green" if report.passed else "bold red"
    console.print(f"[{color}]{'PASS' if report.passed else 'FAIL'}[/] {report.verdict()}", highlight=False)


def _operators(report: Report) -> Table:
    from rich.table import Table

    table = Table(
        "operator", "judged as", "calls", "worst row", "limit", "other picks", "at", "", title="by themselves"
    )
    for o in report.operators:
        picks = f"{o.num_wrong_picks} of {o.num_rows}" if o.num_wrong_picks or o.num_different_picks else ""
        table.add_row(
            o.operator, o.format, str(o.num_calls), o.failure or f"{o.worst_error:.1e}", f"{o.tolerance:.0e}", picks,
            o.site, "[green]ok[/]" if o.passed else "[bold red]FAIL[/]",
        )  # fmt: skip
    return table


def _prompts(report: Report) -> Table:
    from rich.table import Table

    names = list(dict.fromkeys(c.name for p in report.prompts for c in p.checks))
    table = Table("prompt", "tokens", *names, "diverges at", "", title=f"end to end, judged as {report.format}")
    for p in report.prompts:
        cells = {c.name: f"{c.value:.3g}" if c.passed else f"[bold red]{c.value:.3g}[/]" for c in p.checks}
        table.add_row(
            p.name, str(p.num_tokens), *(cells.get(n, "") for n in names),
            "none" if p.first_divergence is None else f"token {p.first_divergence + 1}",
            "[green]ok[/]" if p.passed else "[bold red]FAIL[/]",
        )  # fmt: skip
    return table
