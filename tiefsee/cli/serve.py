"""`tiefsee serve [MODEL]`: the HTTP door."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from tiefsee.cli.run import BUNDLED_MODEL
from tiefsee.errors import ConfigError

KEY_VARIABLE = "TIEFSEE_API_KEY"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="folder, hub id or bundled model (default: the bundled one)")
    door = parser.add_argument_group("door")
    door.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    door.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    door.add_argument("--name", action="append", default=[], help="a name that requests call the model by; may repeat")
    door.add_argument("--deadline", type=float, metavar="S", help="most seconds for one request")
    door.add_argument("--max-waiting", type=int, default=512, help="requests that may wait; more get 429")
    door.add_argument("--drain", type=float, default=30.0, metavar="S", help="after SIGTERM, wait so long for answers")
    door.add_argument("--max-body", type=int, default=8 << 20, metavar="BYTES")
    door.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin in")
    door.add_argument("--tls-certificate", type=Path, metavar="PEM")
    door.add_argument("--tls-key", type=Path, metavar="PEM")
    door.add_argument("--log-format", default="text", help="text or json")
    door.add_argument("--otel", action="store_true", help="a span per request by OpenTelemetry (extra 'otel')")
    door.add_argument("--usd-per-hour", type=float, help="price of this machine, for the cost figures in /metrics")
    keys = parser.add_argument_group(
        "keys", f"also: the environment variable {KEY_VARIABLE}, one key or several by comma"
    )
    keys.add_argument("--keys", type=Path, metavar="FILE", help="TOML file of hashed keys, see docs/serve.md")
    keys.add_argument("--salt-per-key", action="store_true", help="keys share no cached prefixes (timing tells them)")
    keys.add_argument("--new-key", metavar="NAME", help="print a new key and its lines for the file, then exit")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--device", default="cpu", help="cpu, cuda, npu, or one of several: npu:1 (default: cpu)")
    engine.add_argument("--tp", type=int, default=1, help="ranks that share the model, on devices from --device on")
    engine.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: the checkpoint's)")
    engine.add_argument(
        "--format",
        default="auto",
        help="weights: auto (as published, if it can), keep, bf16, fp16, fp32 or int8",
    )
    engine.add_argument("--max-context", type=int, help="tokens of prompt and answer together")
    engine.add_argument("--max-running", type=int, help="requests computed at once")
    engine.add_argument("--max-step-tokens", type=int, help="tokens per step: larger prompts are cut")
    engine.add_argument("--max-draft", type=int, help="most MTP drafts per step; 0 switches them off")
    engine.add_argument("--chat-format", default="auto", help="auto, template, v3.2, v4 or raw")


def run(options: argparse.Namespace) -> int:
    from tiefsee.serve.logs import start_logging
    from tiefsee.serve.run import serve
    from tiefsee.serve.wire import EngineOptions

    if options.new_key is not None:
        return print_new_key(options.new_key)
    start_logging(options.log_format)
    model, chat_format = options.model or BUNDLED_MODEL, options.chat_format
    if options.model is None and chat_format == "auto":
        chat_format = "v4"
        say(f"{BUNDLED_MODEL} is a base model: it chats in V4's format, and its answers are not an assistant's")
    limits = ("max_context", "max_running", "max_step_tokens", "max_draft")
    config: dict[str, Any] = {name: value for name in limits if (value := getattr(options, name)) is not None}
    engine = EngineOptions(model, options.device, options.dtype, options.format, config, tp=options.tp)
    asyncio.run(serve(door_options(options, chat_format), engine, lambda text: print(text, file=sys.stderr)))
    return 0


def door_options(options: argparse.Namespace, chat_format: str) -> Any:
    """The command line as ServeOptions; ConfigError for what does not fit."""
    from tiefsee.serve.admission import QueueLimits
    from tiefsee.serve.app import DoorOptions
    from tiefsee.serve.options import ServeOptions

    for name in ("deadline", "drain", "max_body", "max_waiting", "usd_per_hour"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; needed a number above 0")
    plain = tuple(key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key)
    return ServeOptions(
        host=options.host, port=options.port, names=tuple(options.name), chat_format=chat_format,
        key_file=options.keys, plain_keys=plain, salt_per_key=options.salt_per_key,
        tls_certificate=options.tls_certificate, tls_key=options.tls_key, deadline_s=options.deadline,
        drain_s=options.drain, usd_per_hour=options.usd_per_hour, log_format=options.log_format, otel=options.otel,
        queue=QueueLimits(max_waiting=options.max_waiting),
        door=DoorOptions(max_body_bytes=options.max_body, cors_origins=tuple(options.cors)),
    )  # fmt: skip


def print_new_key(name: str) -> int:
    from tiefsee.serve.keys import new_key

    key, lines = new_key(name)
    say(f"the key, shown only once: {key}\nadd to the key file:\n")
    print(lines, end="")
    return 0


def say(text: str) -> None:
    print(f"tiefsee: {text}", file=sys.stderr)
