"""`tiefsee serve` from start to end, as one coroutine."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable

from tiefsee.errors import ConfigError, ModelNotFound, TiefseeError
from tiefsee.files import find_model
from tiefsee.serve.app import App
from tiefsee.serve.client import EngineClient
from tiefsee.serve.keys import read_keys
from tiefsee.serve.options import ServeOptions
from tiefsee.serve.server import Door
from tiefsee.serve.service import Service
from tiefsee.serve.tracing import OpenTelemetry
from tiefsee.serve.wire import EngineOptions
from tiefsee.text import ChatFormat, Tokenizer, load_chat_format

log = logging.getLogger("tiefsee.serve")


async def serve(options: ServeOptions, engine: EngineOptions, say: Callable[[str], None] = print) -> None:
    """Serve until a signal. Raises what keeps the model or the door from opening; leaves no process behind."""
    client = EngineClient(engine)
    door = Door(make_app(options, engine, client), options)
    serving = asyncio.create_task(door.serve())
    starting = asyncio.create_task(client.start())
    try:
        if not await _before(serving, door.started()):
            return
        scheme = "http" if options.tls_certificate is None else "https"
        say(f"tiefsee: loading {engine.model}; {scheme}://{options.host}:{door.port} is open")
        if not await _before(serving, starting):
            return  # a signal came while it was loading
        assert client.info is not None
        say(f"tiefsee: ready: {client.info.max_context} tokens of context, {client.info.max_running} requests at once")
        await serving
    finally:
        starting.cancel()
        await client.aclose()
        if not serving.done():
            await door.leave()
            await serving


async def _before(serving: asyncio.Task[None], event: Awaitable[None]) -> bool:
    """Until the event, or until the door has closed before it; whether the event came. Raises what either raised."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        waiting.result()
        return True
    waiting.cancel()
    serving.result()
    return False


def make_app(options: ServeOptions, engine: EngineOptions, client: EngineClient) -> App:
    """The application of these options. Everything that can be wrong with them is said here."""
    files = find_model(engine.model)
    if not (files.folder / "tokenizer.json").is_file():
        raise ModelNotFound(f"{engine.model} has no tokenizer.json; copy it from the original release")
    keys = read_keys(options.key_file, options.plain_keys, salted=options.salt_per_key)
    if options.salt_per_key and not keys:
        raise ConfigError("--salt-per-key was asked for, but there are no keys; add --keys FILE")
    if options.is_public and not keys:
        print(f"tiefsee: WARNING: {options.host} can be reached from other machines, and no key is asked for",
              file=sys.stderr)  # fmt: skip
    tokenizer = Tokenizer.from_folder(files.folder, files.config, files.generation_config)
    service = Service(
        options.names or (engine.model,), client, tokenizer, find_chat_format(files.folder, options.chat_format),
        queue=options.queue, default_deadline_s=options.deadline_s, usd_per_hour=options.usd_per_hour,
    )  # fmt: skip
    return App(service, keys, options.door, OpenTelemetry() if options.otel else None)


def find_chat_format(folder, choice: str) -> ChatFormat | None:  # type: ignore[no-untyped-def]
    """The model's chat format; None for a base model, which then only continues text."""
    try:
        return load_chat_format(folder, choice)
    except ConfigError as error:
        if choice != "auto":
            raise
        log.warning("chat is off: %s", error)
        return None
    except TiefseeError:
        raise
