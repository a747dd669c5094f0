"""`tiefsee plan serve`: which layout serves a model best on so many chips, within service levels."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from tiefsee.cli.plan_report import add_report_options, check_report_options, deliver
from tiefsee.errors import ConfigError, TiefseeError

if TYPE_CHECKING:
    from tiefsee.plan.documents.fleets import Fleet
    from tiefsee.plan.documents.mixed import MixedAnswer
    from tiefsee.plan.documents.serving import Answer
    from tiefsee.plan.fitted.calibrated import Calibrated
    from tiefsee.plan.search import Pool, Question, Slo, Workload

# What a fleet without a price is held against where nothing else is said, and what a page shows beside a pool.
AGAINST = "h800:32"
ON_A_PAGE = ("h800", "h20", "ascend-910c")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="preset, folder, config.json or hub id")
    pools = parser.add_argument_group("chips: one pool, or one for each role")
    pools.add_argument(
        "--chips", action="append", metavar="CHIP:N", help="for example h200:32; given again, the pools are mixed"
    )
    pools.add_argument("--prefill", metavar="CHIP:N", help="what prefills, with --decode")
    pools.add_argument("--decode", metavar="CHIP:N", help="what decodes, with --prefill")
    pools.add_argument("--against", action="append", default=[], metavar="CHIP:N",
                       help="another fleet for the same question; repeatable (default: each of two pools alone; "
                       f"{AGAINST} where nothing has a price; some of as many cards on a page)")  # fmt: skip
    pools.add_argument("--precision", help="fp8, int8, bf16, fp4 .. (default: what each chip is served in)")
    pools.add_argument("--prefill-precision", metavar="P")
    pools.add_argument("--decode-precision", metavar="P")
    pools.add_argument("--kv-precision", default="", metavar="P", help="of the cache (default: bf16)")
    pools.add_argument("--price", action="append", default=[], metavar="CHIP=USD", help="per card-hour; repeatable")
    load = parser.add_argument_group("workload")
    load.add_argument("--isl", type=int, default=4096, help="tokens of a prompt (default: %(default)s)")
    load.add_argument("--osl", type=int, default=1024, help="tokens of an answer (default: %(default)s)")
    load.add_argument("--cache-hit", type=float, default=0.0, metavar="SHARE", help="of a prompt's tokens")
    load.add_argument("--mtp-acceptance", type=float, default=0.0, metavar="N", help="mean accepted drafts per step")
    load.add_argument("--mtp-drafts", type=int, metavar="N", help="drafts per step (default: by the acceptance)")
    load.add_argument("--imbalance", type=float, metavar="X", help="fullest expert rank over the mean")
    goal = parser.add_argument_group("what is wanted")
    goal.add_argument("--tpot-ms", type=float, metavar="MS", help="most time per output token")
    goal.add_argument("--ttft-ms", type=float, metavar="MS", help="most time to the first token")
    goal.add_argument("--rate", type=float, metavar="R", help="requests per second to serve")
    goal.add_argument("--concurrency", type=float, metavar="C", help="requests at once to serve")
    goal.add_argument("--goal", choices=("throughput", "cost", "chips"),
                      help="most tokens/s, fewest USD per token, fewest chips (default: chips with --rate or "
                      "--concurrency, else throughput)")  # fmt: skip
    rests = parser.add_argument_group("what it rests on")
    rests.add_argument("--stack", help="whose software (default: the middle of all)")
    rests.add_argument("--date", metavar="YYYY-MM-DD", help="of when (default: the reference of the fit)")
    more = parser.add_argument_group("more to show")
    more.add_argument("--scaling", action="store_true", help="the best plan with a quarter to twice the cards")
    more.add_argument("--simulate", action=argparse.BooleanOptionalAction, default=True, help="the best layouts")
    more.add_argument("--seed", type=int, default=0)
    more.add_argument("--top", type=int, default=5, metavar="N", help="layouts to show (default: %(default)s)")
    add_report_options(parser)


def run(options: argparse.Namespace) -> int:
    from tiefsee.plan.fitted.calibrated import shipped

    check_report_options(options)
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; needed is 1 or more")
    command, today = "tiefsee " + shlex.join(sys.argv[1:]), date.today().isoformat()
    if len(options.chips or ()) > 1:
        return deliver(mixed_answer(options, shipped()).document(command=command, date=today), options)
    return deliver(answer(options, shipped()).document(command=command, date=today), options)


def mixed_answer(options: argparse.Namespace, calibrated: Calibrated) -> MixedAnswer:
    """Several pools as one service."""
    from tiefsee.plan.documents.mixed import MixedAnswer
    from tiefsee.plan.mixed.service import mix
    from tiefsee.plan.search.corrected import Corrector, steady
    from tiefsee.plan.search.predicted import predicted

    calm = steady(calibrated)
    left_out = [
        f"--{name}" for name in ("prefill", "decode", "concurrency", "goal", "against", "scaling")
        if getattr(options, name)
    ]  # fmt: skip
    if left_out:
        raise ConfigError(
            f"several --chips are mixed by a linear program, for most throughput or the least cost of a --rate; leave "
            f"{', '.join(left_out)} out"
        )
    name, workload, slo = workload_of(options)
    pools = [pool_of(options, text, options.precision, calm) for text in options.chips]
    found = mix(
        workload, slo, pools, goal="throughput" if options.rate is None else "cost", requests_per_s=options.rate,
        correct=Corrector(calm, options.stack, options.date),
    )  # fmt: skip
    predictions = [
        predicted(plan, calm, stack=options.stack, date=options.date, kv_precision=options.kv_precision)
        for plan in found.plans
    ]
    return MixedAnswer(name, workload, slo, found, predictions)


def answer(options: argparse.Namespace, calibrated: Calibrated) -> Answer:
    """Search, predict with ranges, simulate, compare."""
    from tiefsee.plan.documents.serving import Answer
    from tiefsee.plan.documents.swings import plan_tornado
    from tiefsee.plan.search import search
    from tiefsee.plan.search.corrected import steady
    from tiefsee.plan.search.predicted import predicted
    from tiefsee.plan.simulate import simulate_plans

    calm = steady(calibrated)
    name, question = question_of(options, calm)
    others = fleets_of(options, question, calm)  # a name that means nothing fails before the search
    found = search(question)
    shown = found.plans[: options.top]
    predictions = [
        predicted(plan, calm, stack=options.stack, date=options.date, kv_precision=options.kv_precision)
        for plan in shown
    ]
    simulated = (
        simulate_plans(shown, question.slo, top=min(2, len(shown)), requests_per_s=options.rate, seed=options.seed)
        if options.simulate
        else ()
    )
    on_a_page = options.html is not None or options.png is not None
    fleets = [fleet(options, other, calm, frontier=on_a_page) for other in others]
    if found.best.usd_per_hour is None and all(f.usd_per_million_tokens is None for f in fleets):
        fleets.append(fleet(options, _pooled(options, question, AGAINST, calm), calm, frontier=on_a_page))
    found_answer = Answer(name, question, found, predictions, simulated, fleets, scaling=sizes(options, question, calm))
    if not on_a_page:
        return found_answer
    figure = found_answer.fleet.usd_per_million_tokens or predictions[0].estimate("tokens_per_s_per_chip")
    return replace(found_answer, tornado=plan_tornado(found.best, question, figure))


def workload_of(options: argparse.Namespace) -> tuple[str, Workload, Slo]:
    """(the model's name, the workload, its levels). Raises ConfigError, ModelNotFound."""
    from tiefsee.cli.inspect import open_spec
    from tiefsee.plan.question import drafts_of
    from tiefsee.plan.search import Slo, Workload

    name, spec = open_spec(options.model)
    workload = Workload(
        spec, options.isl, options.osl, options.cache_hit, options.mtp_acceptance,
        drafts_of(options.mtp_drafts, options.mtp_acceptance), options.imbalance,
    )  # fmt: skip
    return name, workload, Slo(_seconds("--tpot-ms", options.tpot_ms), _seconds("--ttft-ms", options.ttft_ms))


def question_of(options: argparse.Namespace, calibrated: Calibrated) -> tuple[str, Question]:
    """(the model's name, the question). Raises ConfigError, ModelNotFound."""
    from tiefsee.plan.search import Demand, Goal, Question
    from tiefsee.plan.search.corrected import Corrector

    name, workload, slo = workload_of(options)
    demand = Demand(options.rate, options.concurrency)
    goal: Goal = options.goal or ("throughput" if demand.is_open else "chips")
    pool, prefill, decode = pools_of(options, calibrated)
    corrector = Corrector(calibrated, options.stack, options.date)
    return name, Question(workload, slo, pool, prefill, decode, goal, demand, correct=corrector)


def pools_of(options: argparse.Namespace, calibrated: Calibrated) -> tuple[Pool | None, Pool | None, Pool | None]:
    """(one for both roles, one that prefills, one that decodes)."""
    split = options.prefill is not None or options.decode is not None
    if bool(options.chips) == split or (options.prefill is None) != (options.decode is None):
        raise ConfigError("needed are either --chips CHIP:N, or --prefill CHIP:N and --decode CHIP:N")
    if not split:
        return pool_of(options, options.chips[0], options.precision, calibrated), None, None
    first, second = options.prefill_precision or options.precision, options.decode_precision or options.precision
    prefill = pool_of(options, options.prefill, first, calibrated)
    return None, prefill, pool_of(options, options.decode, second, calibrated)


def pool_of(options: argparse.Namespace, text: str, precision: str | None, calibrated: Calibrated) -> Pool:
    """`h200:32` with its price, its number formats and what its software reaches."""
    from tiefsee.hardware import Figure, parse_fleet
    from tiefsee.plan.figures.money import parse_prices, price_of
    from tiefsee.plan.search import make_pool

    chip, count = parse_fleet(text)
    price, figure = price_of(chip, parse_prices(options.price)), None
    if price is not None:
        figure = Figure(price.value, "USD/h", "estimate", price.source, price.low, price.high)
    return make_pool(
        chip, count, precision=precision, kv_precision=options.kv_precision,
        stack=options.stack, date=options.date, usd_per_hour=figure, base=calibrated.base,
    )  # fmt: skip


def fleets_of(options: argparse.Namespace, question: Question, calibrated: Calibrated) -> list[Question]:
    """The same question to other fleets: those that were named; else each of two pools by itself, or what a page shows
    beside one."""
    if options.against:
        return [_pooled(options, question, text, calibrated) for text in options.against]
    if question.pool is None:
        return [replace(question, pool=pool, prefill=None, decode=None) for pool in question.pools]
    if options.html is None and options.png is None:
        return []
    pool = question.pool
    names = [name for name in ON_A_PAGE if name != pool.name]
    return [_pooled(options, question, f"{name}:{pool.chips_of(pool.count)}", calibrated) for name in names]


def _pooled(options: argparse.Namespace, question: Question, text: str, calibrated: Calibrated) -> Question:
    """The question to another pool, in the number format that its chip is served in. Without a price there is no least
    cost, so such a fleet is asked for the most throughput."""
    pool = pool_of(options, text, None, calibrated)
    priced = pool.usd_per_hour is not None
    goal = "throughput" if question.goal == "cost" and question.demand.is_open and not priced else question.goal
    return replace(question, pool=pool, prefill=None, decode=None, goal=goal)


def fleet(options: argparse.Namespace, question: Question, calibrated: Calibrated, *, frontier: bool) -> Fleet:
    """What a fleet does, or why it can't."""
    from tiefsee.plan.documents.fleets import Fleet
    from tiefsee.plan.search import search
    from tiefsee.plan.search.predicted import predicted

    try:
        found = search(question, frontier=frontier)
    except TiefseeError as error:
        return Fleet(str(question), error=str(error))
    basis = {"stack": options.stack, "date": options.date, "kv_precision": options.kv_precision}
    return Fleet(str(question), found, predicted(found.best, calibrated, **basis))


def sizes(options: argparse.Namespace, question: Question, calibrated: Calibrated) -> list[Fleet]:
    """A quarter to twice the cards, with --scaling."""
    if not options.scaling:
        return []

    def sized(pool: Pool | None, share: float) -> Pool | None:
        return None if pool is None else replace(pool, count=max(1, round(pool.count * share)))

    q = question
    asked = [
        replace(q, pool=sized(q.pool, share), prefill=sized(q.prefill, share), decode=sized(q.decode, share))
        for share in (0.25, 0.5, 1, 2)
    ]
    return [fleet(options, one, calibrated, frontier=False) for one in asked]


def _seconds(name: str, milliseconds: float | None) -> float:
    if milliseconds is None:
        return float("inf")
    if not 0 < milliseconds < 1e9:
        raise ConfigError(f"{name} is {milliseconds}; needed are milliseconds above 0")
    return milliseconds / 1e3
