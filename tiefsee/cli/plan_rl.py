"""`tiefsee plan rl`: what an iteration of GRPO takes, and how to split the cards between rollouts and learning."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from tiefsee.cli.plan_report import add_report_options, check_report_options, deliver
from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    from tiefsee.hardware import Chip
    from tiefsee.plan.search.rollout import Generator
    from tiefsee.plan.training.rl import Rollouts
    from tiefsee.plan.training.rl_answer import RLDocument

LONGEST = 3.0  # times the mean answer, where nothing is said


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="preset (v3, v4-pro, ..), folder, config.json or hub id")
    pools = parser.add_argument_group("chips: shared, or a pool for each")
    pools.add_argument("--chips", metavar="CHIP:N", help="the best split is looked for, and all in turn")
    pools.add_argument("--rollout", metavar="CHIP:N", help="what generates, with --learner")
    pools.add_argument("--learner", metavar="CHIP:N", help="what is trained on, with --rollout")
    pools.add_argument("--price", action="append", default=[], metavar="CHIP=USD", help="per card-hour; repeatable")
    work = parser.add_argument_group("an iteration")
    work.add_argument("--prompts", type=int, default=512, help="prompts of a batch (default: %(default)s)")
    work.add_argument("--samples", type=int, default=16, help="answers to each prompt (default: %(default)s)")
    work.add_argument("--prompt-tokens", type=int, default=512, help="mean (default: %(default)s)")
    work.add_argument("--answer-tokens", type=int, default=4096, help="mean (default: %(default)s)")
    work.add_argument("--longest", type=int, metavar="TOKENS", help=f"answer of a batch (default: {LONGEST:g} x mean)")
    work.add_argument("--tail-hidden", type=float, default=0.0, metavar="SHARE", help="by partial rollouts")
    work.add_argument("--updates", type=int, default=1, help="optimizer steps (default: %(default)s)")
    work.add_argument("--forwards", type=int, default=2, help="passes for log-probabilities (default: %(default)s)")
    work.add_argument("--iterations", type=int, metavar="N", help="of a whole run, for its days and money")
    rests = parser.add_argument_group("how it runs")
    rests.add_argument("--precision", help="of learning: bf16, fp8 (default: fp8 where the chip has it)")
    rests.add_argument("--rollout-precision", metavar="P", help="default: what the chip is served in")
    rests.add_argument("--layout", metavar="pp=16,ep=64,..", help="of the learner; default: the best is looked for")
    rests.add_argument("--optimizer", choices=("adamw", "muon"))
    rests.add_argument("--stack", help="of learning, as in `plan train`")
    rests.add_argument("--rollout-stack", metavar="STACK", help="as in `plan serve`")
    add_report_options(parser)


def run(options: argparse.Namespace) -> int:
    check_report_options(options)
    command = "tiefsee " + shlex.join(sys.argv[1:])
    return deliver(answer(options).document(command=command, date=datetime.date.today().isoformat()), options)


def answer(options: argparse.Namespace) -> RLDocument:
    """Raises ConfigError, OutOfMemory."""
    from tiefsee.cli.plan_train import layout_of
    from tiefsee.plan.documents.describe import describe
    from tiefsee.plan.training.job import make_job
    from tiefsee.plan.training.rl import plan_pools, plan_rl
    from tiefsee.plan.training.rl_answer import RLDocument

    (generator_chip, generators), (learner_chip, learners) = pools_of(options)
    if options.iterations is not None and options.iterations < 1:
        raise ConfigError(f"--iterations is {options.iterations}; needed is 1 or more")
    generator = generator_of(options, generator_chip, generators)
    spec = generator.workload.spec
    job = make_job(
        options.model, spec, learner_chip, learners, sequence=options.prompt_tokens + options.answer_tokens,
        precision=options.precision, optimizer=options.optimizer, with_mtp=False, stack=options.stack,
    )  # fmt: skip
    rollouts = rollouts_of(options, generator)
    layout = layout_of(options.layout) if options.layout else None
    spread = generator.spread(generators)
    if options.chips is not None:
        found, fleet = plan_rl(job, rollouts, layout=layout, rollout_spread=spread), options.chips
    else:
        found = plan_pools(job, rollouts, generator_chip, generators, layout=layout, rollout_spread=spread)
        fleet = f"{options.rollout} + {options.learner}"
    plan, prediction = generator.plan(found.best.rollout_chips)
    return RLDocument(
        options.model, fleet, rollouts, found, describe(plan), prediction, generator.pool.precision, options.iterations
    )


def pools_of(options: argparse.Namespace) -> tuple[tuple[Chip, int], tuple[Chip, int]]:
    """(what generates, what learns): the same where they share."""
    from tiefsee.hardware import Figure, parse_fleet
    from tiefsee.plan.figures.money import parse_prices, price_of

    split = options.rollout is not None or options.learner is not None
    if (options.chips is None) == (not split) or (options.rollout is None) != (options.learner is None):
        raise ConfigError("needed are either --chips CHIP:N, or --rollout CHIP:N and --learner CHIP:N")
    prices = parse_prices(options.price)

    def fleet(text: str) -> tuple[Chip, int]:
        chip, count = parse_fleet(text)
        if chip.name not in prices:
            return chip, count
        price = price_of(chip, prices)
        assert price is not None
        figure = Figure(price.value, "USD/h", "estimate", price.source, price.low, price.high)
        return replace(chip, usd_per_hour=figure), count

    if not split:
        both = fleet(options.chips)
        return both, both
    return fleet(options.rollout), fleet(options.learner)


def generator_of(options: argparse.Namespace, chip: Chip, count: int) -> Generator:
    from tiefsee.plan.fitted.calibrated import shipped
    from tiefsee.plan.names.models import find_spec
    from tiefsee.plan.search import Workload, make_pool
    from tiefsee.plan.search.corrected import steady
    from tiefsee.plan.search.rollout import Generator

    calm = steady(shipped())
    workload = Workload(find_spec(options.model), options.prompt_tokens, options.answer_tokens)
    pool = make_pool(chip, count, precision=options.rollout_precision, stack=options.rollout_stack, base=calm.base)
    return Generator(workload, pool, options.prompts * options.samples, calm, options.rollout_stack)


def rollouts_of(options: argparse.Namespace, generator: Generator) -> Rollouts:
    from tiefsee.plan.training.rl import Rollouts

    most = generator.workload.spec.max_position_embeddings - options.prompt_tokens
    longest = min(LONGEST * options.answer_tokens, most) if options.longest is None else options.longest
    if longest > most:
        raise ConfigError(f"--longest is {longest:,}; with its prompt it exceeds the model's context of {most:,} more")
    return Rollouts(
        options.prompts, options.samples, options.prompt_tokens, options.answer_tokens, longest,
        generator.tokens_per_s_per_chip, generator.pace_s, options.tail_hidden, options.updates, options.forwards,
    )  # fmt: skip
