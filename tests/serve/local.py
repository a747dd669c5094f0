"""Servers for tests: the door in a thread of this process, the engine in a process of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiefsee.files import find_model
from tiefsee.serve.admission import QueueLimits
from tiefsee.serve.app import App, DoorOptions
from tiefsee.serve.client import EngineClient
from tiefsee.serve.keys import Keys
from tiefsee.serve.options import ServeOptions
from tiefsee.serve.server import Door
from tiefsee.serve.service import Service
from tiefsee.serve.wire import EngineOptions
from tiefsee.text import Tokenizer, load_chat_format

MODEL = "tiefsee-demo"
BUNDLED = Path(__file__).parents[2] / "tiefsee" / "models" / MODEL


class Server:
    """One engine, and doors to it. Everything that touches them runs on `loop`, in a thread."""

    def __init__(self, **config: Any) -> None:
        core, tp = config.pop("core", ""), config.pop("tp", 1)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = EngineClient(EngineOptions(MODEL, dtype="float32", config=config, core=core, tp=tp))
        self.do(self.engine.start())

    def do(self, work: Any, at_most_s: float = 120) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(at_most_s)

    def app(
        self, chat: str | None = "v4", keys: Keys | None = None, door: DoorOptions | None = None, tracer: Any = None,
        queue: QueueLimits | None = None,
    ) -> App:  # fmt: skip
        files = find_model(MODEL)
        tokenizer = Tokenizer.from_folder(files.folder, files.config, files.generation_config)
        chat_format = None if chat is None else load_chat_format(files.folder, chat)
        service = Service((MODEL,), self.engine, tokenizer, chat_format, queue=queue)
        return App(service, keys or Keys(), door or DoorOptions(), tracer)

    @contextmanager
    def door(self, app: App) -> Iterator[str]:
        """The address of `app` on a free port."""
        door = Door(app, ServeOptions(port=0, drain_s=1.0))
        serving = asyncio.run_coroutine_threadsafe(door.serve(), self.loop)
        self.do(door.started())
        try:
            yield f"http://127.0.0.1:{door.port}"
        finally:
            self.do(door.leave())
            serving.result(20)

    def close(self) -> None:
        self.do(self.engine.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()


@contextmanager
def serving(**config: Any) -> Iterator[Server]:
    server = Server(**config)
    try:
        yield server
    finally:
        server.close()
