"""The engine process: one core, one socket to the front.

    while True:  listen -> step -> note who was scheduled -> flush

Started as `python -m tiefsee.serve.worker FD`. The loop never waits for the front (serve/outbox.py); it
exits at once when the front is gone, even in the middle of a step (`exit_with_front`).
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from tiefsee.engine.delta import Delta
from tiefsee.errors import RequestError, TiefseeError, WireError
from tiefsee.serve.compiling import Compilations
from tiefsee.serve.outbox import FrontGone, Outbox
from tiefsee.serve.wire import (
    Add,
    Ask,
    Cancel,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Fatal,
    Log,
    Piece,
    Ready,
    Refusal,
    Start,
    Started,
    Stop,
    commands,
    task_of,
)

EXIT_FAILED, EXIT_FRONT_GONE = 1, 3
# Statistics are also the heartbeat: while there is work one goes out at least this often, after a step.
STATS_EVERY_S = 0.1
READ_BYTES = 1 << 20
LAST_WORDS_S = 2.0


class Worker:
    """Commands in, steps, events out. `core` is an EngineCore, or what serve/stub.py makes."""

    def __init__(self, core: Any, connection: socket.socket, outbox: Outbox) -> None:
        self.core, self._connection, self._outbox = core, connection, outbox
        self._poll = select.poll()
        self._commands = commands()
        self._groups: dict[int, _Group] = {}
        self._unscheduled: dict[int, Any] = {}  # the first Generation of a request
        self._stats_due_s = 0.0
        self._stats_stale = True
        self._asked = 0
        self._num_paused = 0
        self._stopped = False
        self._compilations = Compilations()
        self._poll.register(self._compilations.descriptor, select.POLLIN)

    def run(self) -> None:
        """Until Stop. Raises what a step raises, WireError and FrontGone."""
        while True:
            can_step = self.core.has_work() and not self._outbox.is_full
            self._num_paused += self._outbox.is_full
            self._listen(wait=not can_step)
            if self._stopped:
                self.core.cancel_all()
                return
            if self.core.has_work() and not self._outbox.is_full:
                began_s = time.monotonic()
                self.core.step()
                self._note_started(began_s)
                self._stats_stale = True
            self._report()
            self._outbox.flush()

    def _listen(self, *, wait: bool) -> None:
        """Carry out the commands that have come; `wait` until one comes, or the outbox can go on."""
        wanted = select.POLLIN | (select.POLLOUT if self._outbox.has_unsent else 0)
        self._poll.register(self._connection, wanted)
        ready = dict(self._poll.poll(None if wait else 0))
        if self._compilations.descriptor in ready:
            for add, error in self._compilations.take():
                self._add(add) if error is None else self._refuse(add.request, error)
        if not ready.get(self._connection.fileno(), 0) & ~select.POLLOUT:
            return
        for command in self._commands.feed(receive(self._connection)):
            match command:
                case Add():
                    self._add(command)
                case Cancel(request):
                    self._cancel(request)
                case Ask(number):
                    self._asked, self._stats_due_s, self._stats_stale = number, 0.0, True
                case Stop():
                    self._stopped = True
                case Start():
                    raise WireError("a second Start; a worker serves one core in its life")

    # ------------------------------------------------------------------------------- requests

    def _add(self, command: Add) -> None:
        number = command.request
        tell = partial(self._tell, number)
        try:
            task = task_of(command)
            constraint, guide = task.sampling.constraint, getattr(self.core, "guide", None)
            if constraint is not None and guide is not None and guide.find(constraint) is None:
                self._compilations.begin(guide, constraint, command)
                return
            generations = self.core.add(task.prompt, task.sampling, tell, priority=task.priority, salt=task.salt)
        except RequestError as error:
            self._refuse(number, error)
            return
        self._groups[number] = _Group(generations, len(generations))
        self._unscheduled[number] = generations[0]
        self._outbox.accepted(number)

    def _refuse(self, number: int, error: RequestError) -> None:
        self._outbox.refused(Refusal(number, type(error).__name__, str(error)))

    def _cancel(self, number: int) -> None:
        """Forget a request; it may have ended meanwhile. What is held of its answers nobody wants."""
        self._compilations.cancel(number)
        group = self._groups.pop(number, None)
        self._unscheduled.pop(number, None)
        if group is not None:
            for generation in group.generations:
                self.core.cancel(generation)
            self._stats_stale = True

    def _tell(self, number: int, index: int, delta: Delta) -> None:
        """One delta of a step. Requests that were cancelled have no one to tell."""
        group = self._groups.get(number)
        if group is None:
            return
        logprobs = list(delta.logprobs) or None
        ranges = list(delta.special_ranges) or None
        self._outbox.piece(Piece(
            number, index, list(delta.token_ids), delta.text, delta.finish_reason, logprobs, ranges, delta.stop,
            delta.error, list(delta.prompt_logprobs) or None,
        ))  # fmt: skip
        if delta.finish_reason is not None:
            group.num_open -= 1
            if not group.num_open:
                del self._groups[number]

    def _note_started(self, began_s: float) -> None:
        """Tell of the requests that the step has scheduled for the first time."""
        for number, generation in list(self._unscheduled.items()):
            request = generation.request
            if request.num_committed_tokens or generation.token_ids:
                del self._unscheduled[number]
                self._outbox.started(Started(number, request.num_cached_tokens, began_s))

    # ------------------------------------------------------------------------------ statistics

    def _report(self) -> None:
        """Statistics when they are due, and whenever work has ended."""
        now_s = time.monotonic()
        if self._stats_stale and (now_s >= self._stats_due_s or not self.core.has_work()):
            self._outbox.stats(engine_stats(self.core, self._num_paused), self._asked)
            self._stats_due_s, self._stats_stale = now_s + STATS_EVERY_S, False


class _Group:
    """The answers of one request."""

    def __init__(self, generations: list[Any], num_open: int) -> None:
        self.generations, self.num_open = generations, num_open


def engine_stats(core: Any, num_paused: int = 0) -> EngineStats:
    now, counters = core.scheduler.statistics(), core.counters
    return EngineStats(
        num_running=now.num_running,
        num_waiting=now.num_waiting,
        num_blocks=core.plan.num_blocks,
        num_free_blocks=now.num_free_blocks,
        num_used_blocks=now.num_used_blocks,
        num_cached_blocks=now.num_cached_blocks,
        num_preemptions=now.num_preemptions,
        num_steps=counters.steps,
        num_prompt_tokens=counters.prompt_tokens,
        num_generated_tokens=counters.generated_tokens,
        num_prefix_hit_tokens=counters.prefix_hit_tokens,
        num_drafted_tokens=counters.drafted_tokens,
        num_accepted_drafts=counters.accepted_drafts,
        num_paused_steps=num_paused,
    )


def engine_info(core: Any, options: EngineOptions, load_s: float) -> EngineInfo:
    return EngineInfo(
        model=options.model,
        folder=str(core.folder),
        device=options.device,
        max_context=core.max_context,
        vocab_size=core.spec.vocab_size,
        eos_ids=tuple(core.eos_ids),
        max_running=core.config.max_running,
        max_step_tokens=core.config.max_step_tokens,
        max_draft=core.plan.max_draft,
        block_tokens=core.plan.block_tokens,
        num_blocks=core.plan.num_blocks,
        cache_bytes=core.plan.num_bytes,
        generation_config=dict(core.generation_config),
        notes=tuple(core.notes),
        pid=os.getpid(),
        load_s=load_s,
    )


# ------------------------------------------------------------------------------------ the process


def exit_with_front(connection: socket.socket) -> None:
    """End this process as soon as the front's end of the socket is closed, whoever closed it.

    A thread of its own, since the loop may be in a step of minutes when the front is killed. It reads
    nothing: a hang-up is reported without being asked for.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(connection, 0)
        poll.poll()
        os._exit(EXIT_FRONT_GONE)

    threading.Thread(target=watch, name="exit-with-front", daemon=True).start()


class _LogToFront(logging.Handler):
    """Log records of this process, as messages; from the stepping thread only, others go to stderr."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox, self._thread = outbox, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self._thread:
            self._outbox.send(Log(record.levelno, f"{record.name}: {record.getMessage()}"))
            with suppress(FrontGone):  # the loop will find out
                self._outbox.flush()
        else:
            print(self.format(record), file=sys.stderr, flush=True)


def receive(connection: socket.socket) -> bytes:
    """What the front has sent, at least one byte. Raises FrontGone."""
    try:
        data = connection.recv(READ_BYTES)
    except OSError as error:
        raise FrontGone(str(error)) from error
    if not data:
        raise FrontGone("the front closed its end")
    return data


def read_start(connection: socket.socket) -> EngineOptions:
    """The options, which the front sends before anything else."""
    frames = commands()
    while True:
        for command in frames.feed(receive(connection)):
            if not isinstance(command, Start):
                raise WireError(f"the first command was {type(command).__name__}; needed Start")
            return command.options


def build(options: EngineOptions) -> Any:
    """The core: from a model, or from the function that `options.core` names."""
    if options.core:
        module, _, function = options.core.partition(":")
        return getattr(import_module(module), function)(options)
    from tiefsee.engine.llm import LLM  # torch is imported here, with the watch already kept

    return LLM(
        options.model, device=options.device, dtype=options.dtype, format=options.format, tp=options.tp,
        **options.config,
    ).core  # fmt: skip


def serve(connection: socket.socket, outbox: Outbox) -> None:
    """Build the core and serve it until Stop."""
    options = read_start(connection)
    began_s = time.monotonic()
    core = build(options)
    gc.collect()
    gc.freeze()  # the modules and the model stay: no collection needs to look at them again
    outbox.send(Ready(engine_info(core, options, time.monotonic() - began_s)))
    outbox.flush()
    Worker(core, connection, outbox).run()


def main(arguments: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are the front's to answer; it says Stop
    connection = socket.socket(fileno=int(arguments[0]))
    connection.set_inheritable(False)
    exit_with_front(connection)
    outbox = Outbox(connection)
    logging.basicConfig(level=logging.INFO, handlers=[_LogToFront(outbox)])
    try:
        serve(connection, outbox)
    except FrontGone:
        return EXIT_FRONT_GONE
    except Exception as error:
        if not isinstance(error, TiefseeError):
            traceback.print_exc()
        outbox.send(Fatal(type(error).__name__, str(error)))
        outbox.flush_all(LAST_WORDS_S)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's farewell: the socket closes when the process is gone, not some time before.
    os._exit(code)
