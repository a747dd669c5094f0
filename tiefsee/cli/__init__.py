"""`tiefsee run, chat, serve, inspect, chips, plan, check, bench, train`: arguments in, one exit status out.

Each command lives in a file of its own and is imported when it is called, so that `inspect`, `chips`, `plan`
and `check plan` never import torch. An error of ours is one line on stderr and status 1; Ctrl-C is status 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tiefsee import __version__, leave_vendors_out
from tiefsee.errors import TiefseeError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    # Before torch is loaded: OpenMP's idle threads shall sleep and not spin. On a machine with other work a
    # spinning barrier costs far more than it saves (102 against 1.9 tokens/s, docs/log.md 2026-11-24).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    leave_vendors_out()
    if options.command is None:
        parser.print_help()
        return 2
    try:
        return options.handler(options)
    except TiefseeError as error:
        print(f"tiefsee: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntiefsee: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `tiefsee run ... | head` is no error
        sys.stderr.close()
        return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tiefsee",
        description="DeepSeek models on unlike accelerators: run, chat, serve, inspect, chips, plan, check, bench "
        "and train.",
    )
    parser.add_argument("--version", action="version", version=f"tiefsee {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_run(commands.add_parser("run", help="continue one prompt, streaming"))
    _add_chat(commands.add_parser("chat", help="hold a conversation in the terminal"))
    _add_inspect(commands.add_parser("inspect", help="what a model is, and what fits here (no torch needed)"))
    _add_chips(commands.add_parser("chips", help="accelerators and their figures: list, show, compare, measure"))
    _add_plan(commands.add_parser("plan", help="what serving or training would take, with ranges (no torch needed)"))
    _add_serve(commands.add_parser("serve", help="serve a model over HTTP (OpenAI, Anthropic)"))
    _add_bench(commands.add_parser("bench", help="load on a server, and what came of it"))
    _add_train(commands.add_parser("train", help="prepare data, pretrain"))
    _add_check(commands.add_parser("check", help="is it so? predictions held against figures, device against device"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[MODEL] PROMPT",
        help="a model and a prompt; one word alone is the prompt for the bundled model",
    )
    _add_model_options(parser)
    _add_sampling_options(parser)
    parser.add_argument("--chat", action="store_true", help="wrap the prompt as a user's message")
    parser.set_defaults(handler=_later("run"))


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder, hub id or bundled model")
    parser.add_argument("--system", help="system message")
    _add_model_options(parser)
    _add_sampling_options(parser)
    parser.set_defaults(handler=_later("chat"))


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder, config.json, hub id or preset (v3, v4-flash, ..)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--tp", type=int, default=1, help="also say what each of so many ranks holds")
    parser.set_defaults(handler=_later("inspect"))


def _add_chips(parser: argparse.ArgumentParser) -> None:
    from tiefsee.cli.chips import add_options

    add_options(parser, _later)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from tiefsee.cli.serve import add_options

    add_options(parser)
    parser.set_defaults(handler=_later("serve"))


def _add_check(parser: argparse.ArgumentParser) -> None:
    from tiefsee.cli.check import add_options

    add_options(parser.add_subparsers(dest="check_command", metavar="WHAT", required=True), _later)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from tiefsee.cli.bench import add_options

    add_options(parser.add_subparsers(dest="bench_command", metavar="STEP", required=True), _later)


def _add_train(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="train_command", metavar="STEP", required=True)
    data = steps.add_parser("data", help="text to tokenizer and token shards")
    data.add_argument("--text", required=True, help="folder of texts, see docs/train.md")
    data.add_argument("--out", required=True)
    data.add_argument("--vocab-size", type=int, default=4096)
    data.add_argument("--seed", type=int, default=0)
    data.set_defaults(handler=_later("train", "run_data"))
    pretrain = steps.add_parser("pretrain", help="train a model from its first values")
    pretrain.add_argument("--config", required=True, help="config.json of the model to make")
    pretrain.add_argument("--data", required=True, help="what `train data` wrote")
    pretrain.add_argument("--out", required=True, help="state, metrics and the finished checkpoint")
    pretrain.add_argument("--steps", type=int, required=True)
    pretrain.add_argument("--learning-rate", type=float, default=4e-3)
    pretrain.add_argument("--tokens-per-row", type=int, default=512)
    pretrain.add_argument("--rows", type=int, default=8, help="rows per step")
    pretrain.add_argument("--device", default="cpu")
    pretrain.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--save-every", type=int, default=250)
    pretrain.set_defaults(handler=_later("train", "run_pretrain"))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from tiefsee.cli import plan_identify, plan_rl, plan_serve, plan_train

    steps = parser.add_subparsers(dest="plan_command", metavar="QUESTION", required=True)
    for name, module, text in (
        ("serve", plan_serve, "which layout serves a model best on so many chips"),
        ("train", plan_train, "what pretraining would take on a cluster"),
        ("rl", plan_rl, "what an iteration of reinforcement learning takes, and how to split the cards"),
        ("identify", plan_identify, "what hardware is behind an endpoint"),
    ):
        question = steps.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. See docs/plan.md.")
        module.add_options(question)
        question.set_defaults(handler=_later(f"plan_{name}"))


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--device", default="cpu", help="cpu, cuda, npu, or one of several: npu:1 (default: cpu)")
    group.add_argument("--tp", type=int, default=1, help="ranks that share the model, on devices from --device on")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: the checkpoint's)")
    group.add_argument(
        "--format",
        default="auto",
        help="weights: auto (as published, if it can), keep, bf16, fp16, fp32 or int8",
    )
    group.add_argument("--max-context", type=int, help="tokens of prompt and answer together")
    group.add_argument("--max-draft", type=int, help="most MTP drafts per step; 0 switches them off")
    group.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    group.add_argument("--chat-format", default="auto", help="auto, template, v3.2, v4 or raw")
    group.add_argument("--raw", action="store_const", dest="chat_format", const="raw", help="chat without a format")
    thinking = group.add_mutually_exclusive_group()
    thinking.add_argument(
        "--thinking", dest="thinking", action="store_true", default=None, help="reason before answering"
    )
    thinking.add_argument("--no-thinking", dest="thinking", action="store_false", help="answer at once")
    group.add_argument("--effort", help="reasoning effort, where the model has levels (V4)")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling", "defaults are the checkpoint's generation_config.json")
    group.add_argument("--max-tokens", type=int, help="most new tokens (default: run 256, chat until it ends)")
    group.add_argument("--temperature", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument("--top-p", type=float)
    group.add_argument("--min-p", type=float)
    group.add_argument("--seed", type=int)
    group.add_argument("--stop", action="append", default=[], help="end at this text; may be given again")
    group.add_argument("--ignore-eos", action="store_true")


def _later(module: str, function: str = "run") -> object:
    """A handler that imports its module when it is called."""

    def handler(options: argparse.Namespace) -> int:
        import importlib

        return int(getattr(importlib.import_module(f"tiefsee.cli.{module}"), function)(options))

    return handler
