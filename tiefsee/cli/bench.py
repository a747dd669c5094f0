"""`tiefsee bench serve` and `tiefsee bench compare`: load on a server, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiefsee.errors import ConfigError


def add_options(steps: Any, later: Any) -> None:
    serve = steps.add_parser("serve", help="load on any OpenAI-compatible server")
    serve.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    serve.add_argument("--model", help="its model (default: the only one it has)")
    serve.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable that holds the key")
    serve.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    serve.add_argument("--extra-body", metavar="JSON", help="more fields for every request's body")
    when = serve.add_argument_group("when requests come (one of these; several values are a sweep)")
    when.add_argument("--rate", metavar="R[,R..]", help="open loop: requests per second, by Poisson")
    when.add_argument("--even", action="store_true", help="with --rate: at equal distances")
    when.add_argument("--concurrency", metavar="C[,C..]", help="closed loop: so many at once")
    when.add_argument("--burst", action="store_true", help="all at the start")
    what = serve.add_argument_group("what they look like")
    what.add_argument("--isl", default="512", help="prompt tokens: N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA")
    what.add_argument("--osl", default="128", help="answer tokens, likewise")
    what.add_argument("--ignore-eos", action="store_true", help="answers are as long as --osl says")
    what.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS", help="so many are the same in a group")
    what.add_argument("--prefix-groups", type=int, default=1)
    what.add_argument("--trace", type=Path, metavar="FILE", help="requests from a file (ours, Mooncake's, ShareGPT's)")
    what.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="sizes the prompts (default: the server's usage)"
    )
    what.add_argument("--seed", type=int, default=0)
    extent = serve.add_argument_group("how much")
    extent.add_argument("--num-requests", type=int, help="per load (default: 100, or all of a trace)")
    extent.add_argument("--duration", type=float, metavar="S", help="stop sending after so many seconds")
    extent.add_argument("--warmup", type=int, default=2, help="requests before, not counted (default: %(default)s)")
    extent.add_argument("--timeout", type=float, default=600.0, metavar="S", help="most seconds of one request")
    extent.add_argument("--retry", action="store_true", help="try again after 429 and 503, as Retry-After says")
    report = serve.add_argument_group("report")
    report.add_argument("--slo", default="", metavar="ttft=S,tpot=S,e2e=S", help="what a good answer is: goodput")
    report.add_argument("--attainment", type=float, default=0.9, help="a sweep ends where fewer are good (0.9)")
    report.add_argument("--json", type=Path, metavar="FILE")
    report.add_argument("--records", action="store_true", help="with --json: every request's times")
    report.add_argument("--plot", type=Path, metavar="FILE.png", help="needs the extra 'plot'")
    serve.set_defaults(handler=later("bench", "run_serve"))
    compare = steps.add_parser("compare", help="two files of --json side by side")
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)
    compare.add_argument("--json", action="store_true", help="machine-readable")
    compare.set_defaults(handler=later("bench", "run_compare"))


def run_serve(options: argparse.Namespace) -> int:
    from tiefsee.serve.load.plot import check_plot

    loads, workload = arrivals_of(options), workload_of(options)
    if options.plot is not None:
        check_plot(options.plot)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ConfigError(f"--json is {options.json}; there is no folder {options.json.resolve().parent}")
    return asyncio.run(measure(options, loads, workload))


async def measure(options: argparse.Namespace, loads: list[Any], workload: Any) -> int:
    """Every load in turn; prints as it goes and writes what was asked for, also after Ctrl-C."""
    from tiefsee.serve.load.client import Target
    from tiefsee.serve.load.plan import Form, plan
    from tiefsee.serve.load.plot import write_plot
    from tiefsee.serve.load.report import print_run, print_sweep, write_json
    from tiefsee.serve.load.run import Extent, Run, drive
    from tiefsee.serve.load.summary import Slo, summarise

    slo, console = Slo.parse(options.slo), Console()
    extent = Extent(options.num_requests or (None if workload.trace or options.duration else 100), options.duration)
    summaries: list[dict[str, Any]] = []
    runs: list[Run] = []
    extra = extra_body(options)
    async with Target(options.url, api_key(options), options.timeout, retry=options.retry) as target:
        form = Form(options.endpoint, await target.model(options.model), extra)
        sizer = await sizer_of(options, target, form)
        more = f" (its format alone takes {sizer.overhead:.0f} tokens)" if sizer.overhead >= 1 else ""
        say(f"{form.model} at {target.url}; prompts sized by {sizer.source}{more}")
        for number, load in enumerate(loads):
            if options.warmup and not runs:
                warm = plan(replace(workload, trace=()), load, form, sizer, first=1_000_000)
                if (await interruptible(drive(target, load, warm, Extent(options.warmup)))).interrupted:
                    raise KeyboardInterrupt
            # A number for every request of the sweep, so that no load finds the last one's prompts in the cache.
            planned = plan(workload, load, form, sizer, first=number * 100_000)
            run = await interruptible(drive(target, load, planned, extent, progress(extent)))
            runs.append(run)
            summaries.append(summarise(run, slo))
            print_run(console, summaries[-1])
            if run.interrupted:
                break
            if slo.limits and summaries[-1]["slo_attainment"] < options.attainment and number + 1 < len(loads):
                say(f"the sweep ends here: fewer than {options.attainment:.0%} of the requests are within the SLO")
                break
    if len(summaries) > 1:
        print_sweep(console, summaries)
    records = [run.records for run in runs]
    if options.json is not None:
        about = {"url": target.url, "model": form.model, "endpoint": form.endpoint, "extra_body": form.extra}
        about |= {"isl": str(workload.prompt_lengths), "osl": str(workload.output_lengths), "seed": workload.seed}
        write_json(options.json, {**about, "prompts_sized_by": sizer.source}, summaries, records * options.records)
    if options.plot is not None and any(record.ok for seen in records for record in seen):
        write_plot(options.plot, summaries, records)
    if runs[-1].interrupted:
        return 130
    return 0 if any(summary["requests"]["ok"] for summary in summaries) else 1


async def interruptible(work: Any) -> Any:
    """A run that Ctrl-C ends early, with a report of what was measured."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def arrivals_of(options: argparse.Namespace) -> list[Any]:
    from tiefsee.serve.load.arrivals import Arrivals

    asked = [name for name in ("rate", "concurrency", "burst") if getattr(options, name)]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]} were given; needed is one way for requests to come")
    for name in ("num_requests", "duration", "timeout", "prefix_groups"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; needed is a number above 0")
    if options.rate:
        rates = numbers(options.rate, "--rate", float)
        return [Arrivals("even" if options.even else "poisson", rate_per_s=rate) for rate in rates]
    if options.concurrency:
        return [Arrivals("closed", concurrency=int(c)) for c in numbers(options.concurrency, "--concurrency", int)]
    if options.burst:
        return [Arrivals("burst")]
    if options.trace is not None:
        return [Arrivals("trace")]
    return [Arrivals("closed", concurrency=8)]


def numbers(text: str, option: str, kind: type) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < value < 1e6 for value in found):
        raise ConfigError(f"{option} is {text!r}; needed are numbers above 0, joined by commas")
    return sorted(found)


def workload_of(options: argparse.Namespace) -> Any:
    from tiefsee.serve.load.lengths import Lengths
    from tiefsee.serve.load.plan import Workload
    from tiefsee.serve.load.trace import read_trace

    trace = tuple(read_trace(options.trace)) if options.trace is not None else ()
    if options.shared_prefix < 0:
        raise ConfigError(f"--shared-prefix is {options.shared_prefix}; needed is a number of tokens")
    if trace and trace[0].arrival_s is None and not (options.rate or options.concurrency or options.burst):
        raise ConfigError(f"{options.trace} has no times of arrival; give --rate, --concurrency or --burst")
    return Workload(
        Lengths.parse(options.isl, "--isl"), Lengths.parse(options.osl, "--osl"), options.shared_prefix,
        options.prefix_groups, trace, options.seed,
    )  # fmt: skip


def api_key(options: argparse.Namespace) -> str | None:
    if options.api_key_env is None:
        return None
    key = os.environ.get(options.api_key_env)
    if not key:
        raise ConfigError(f"--api-key-env names {options.api_key_env}, which is not set")
    return key


def extra_body(options: argparse.Namespace) -> dict[str, Any]:
    extra: Any = {}
    if options.extra_body:
        try:
            extra = json.loads(options.extra_body)
        except ValueError as error:
            raise ConfigError(f"--extra-body is no JSON: {error}") from None
        if not isinstance(extra, dict):
            raise ConfigError(f"--extra-body is {options.extra_body[:40]}; needed is a JSON object")
    return {"ignore_eos": True, **extra} if options.ignore_eos else extra


async def sizer_of(options: argparse.Namespace, target: Any, form: Any) -> Any:
    from tiefsee.serve.load.prompts import Prompts, Sizer

    if options.tokenizer is None:
        return await target.calibrate(form, options.seed)
    from tiefsee.files import find_model
    from tiefsee.text import Tokenizer

    files = find_model(str(options.tokenizer))
    tokenizer = Tokenizer.from_folder(files.folder, files.config, files.generation_config)
    sample = Prompts(Sizer(1.0), options.seed).piece("sample", 500)
    per_word = len(tokenizer.encode(sample)) / 500
    return Sizer(per_word, 0.0, f"the tokenizer of {options.tokenizer}", lambda text: len(tokenizer.encode(text)))


def progress(extent: Any) -> Any:
    """One line on a terminal that says how far the run is; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda run: None

    def note(run: Any) -> None:
        of = f" of {extent.num_requests}" if extent.num_requests else ""
        print(
            f"\r{sum(record.end_s > 0 for record in run.records)}{of} answered",
            end="\x1b[K\r",
            file=sys.stderr,
            flush=True,
        )

    return note


def run_compare(options: argparse.Namespace) -> int:
    from tiefsee.serve.load.compare import compare, print_comparison
    from tiefsee.serve.load.report import read_json

    rows = compare(read_json(options.first), read_json(options.second))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print_comparison(Console(), rows, (options.first.stem, options.second.stem))
    return 0


def say(text: str) -> None:
    print(f"tiefsee: {text}", file=sys.stderr)
