"""`tiefsee chat MODEL`: a conversation in the terminal, with history, reasoning shown apart."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tiefsee.cli.run import open_core, sampling_from, stream_answer, write
from tiefsee.errors import RequestError
from tiefsee.text import ReasoningSplitter, load_chat_format

if TYPE_CHECKING:
    from tiefsee.text.reasoning import Delta

HELP = "/clear forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer."
DIM, PLAIN = "\033[2m", "\033[0m"


def run(options: argparse.Namespace) -> int:
    sampling = sampling_from(options, None)
    core = open_core(options, options.model)
    assert core.tokenizer is not None
    chat = load_chat_format(core.folder, options.chat_format)
    history = [{"role": "system", "content": options.system}] if options.system else []
    opening = list(history)
    print(f"{options.model}, format {chat.name}. {HELP}", file=sys.stderr)
    while (line := ask()) is not None:
        if line == "/clear":
            history = list(opening)
            continue
        if not line:
            continue
        history.append({"role": "user", "content": line})
        rendered = chat.render(history, thinking=options.thinking, effort=options.effort)
        printer = Printer(rendered.starts_in_reasoning)
        try:
            stream = stream_answer(core, rendered.token_ids(core.tokenizer), sampling, printer.take)
        except RequestError as error:
            print(f"tiefsee: {error}; /clear starts anew", file=sys.stderr)
            history.pop()
            continue
        printer.finish()
        print(stream.report(), file=sys.stderr)
        if stream.error is not None:
            print(f"tiefsee: the answer ended early: {stream.error}", file=sys.stderr)
        history.append({"role": "assistant", "content": printer.answer, "reasoning_content": printer.reasoning})
    return 0


def ask() -> str | None:
    """The next line of the user; None at the end."""
    try:
        line = input("\n> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line in ("/quit", "/exit") else line


class Printer:
    """Shows an answer as it streams: reasoning dimmed and under a rule of its own, then the answer."""

    def __init__(self, starts_in_reasoning: bool) -> None:
        self._splitter = ReasoningSplitter(starts_in_reasoning)
        self._colour = sys.stdout.isatty()
        self.reasoning = self.answer = ""

    def take(self, text: str) -> None:
        self._show(self._splitter.feed(text))

    def finish(self) -> None:
        self._show(self._splitter.flush())
        write((PLAIN if self._colour else "") + "\n")

    def _show(self, delta: Delta) -> None:
        if delta.reasoning:
            if not self.reasoning:
                write((DIM if self._colour else "") + "[reasoning]\n")
            self.reasoning += delta.reasoning
            write(delta.reasoning)
        if delta.answer:
            if self.reasoning and not self.answer:
                write((PLAIN if self._colour else "") + "\n[answer]\n")
            self.answer += delta.answer
            write(delta.answer)
