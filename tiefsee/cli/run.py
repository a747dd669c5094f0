"""`tiefsee run [MODEL] PROMPT`: continue one prompt, streaming; then say how fast it was."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiefsee.errors import ConfigError, DeviceError, ModelNotFound

if TYPE_CHECKING:
    from tiefsee.engine import Delta, Sampling
    from tiefsee.engine.core import EngineCore

BUNDLED_MODEL = "tiefsee-demo"
USUAL_MAX_TOKENS = 256


def run(options: argparse.Namespace) -> int:
    model, prompt = split_words(options.words)
    check_chat_options(options)
    sampling = sampling_from(options, USUAL_MAX_TOKENS)
    core = open_core(options, model)
    prompt_ids = encode_prompt(core, options, prompt)
    stream = stream_answer(core, prompt_ids, sampling, write, opening="" if options.chat else prompt)
    print()
    print(stream.report(), file=sys.stderr)
    if stream.error is not None:
        raise DeviceError(f"the answer ended early: {stream.error}")
    return 130 if stream.interrupted else 0


def split_words(words: list[str]) -> tuple[str, str]:
    """Model and prompt of the command line; a single word is a prompt for the bundled model."""
    if len(words) == 1:
        return BUNDLED_MODEL, words[0]
    if len(words) == 2:
        return words[0], words[1]
    raise ConfigError(f"found {len(words)} arguments; needed [MODEL] PROMPT; put the prompt into quotes")


def check_chat_options(options: argparse.Namespace) -> None:
    """Options that only a conversation has are refused without --chat, not dropped."""
    given = {
        "--thinking": options.thinking is True,
        "--no-thinking": options.thinking is False,
        "--effort": options.effort is not None,
        "--chat-format or --raw": options.chat_format != "auto",
    }
    names = [name for name, is_given in given.items() if is_given]
    if names and not options.chat:
        raise ConfigError(f"{', '.join(names)}: only a chat has it; add --chat to send the prompt as a message")


def open_core(options: argparse.Namespace, model: str) -> EngineCore:
    """Load the model that the options describe."""
    from tiefsee.engine.build import build_core
    from tiefsee.engine.config import EngineConfig

    set_threads(options.threads)
    config = EngineConfig(max_running=1, max_context=options.max_context, max_draft=options.max_draft)
    core = build_core(
        model, options.device, options.dtype, options.format, config, tp=options.tp, progress=sys.stderr.isatty()
    )
    for note in core.notes:
        print(f"tiefsee: {note}", file=sys.stderr)
    if core.tokenizer is None:
        raise ModelNotFound(f"{model} has no tokenizer.json; copy it from the original release")
    return core


def set_threads(threads: int) -> None:
    import torch

    if threads < 0:
        raise ConfigError(f"--threads is {threads}; needed 1 or more, or 0 for torch's own choice")
    if threads:
        torch.set_num_threads(threads)


def encode_prompt(core: EngineCore, options: argparse.Namespace, prompt: str) -> list[int]:
    assert core.tokenizer is not None
    if not options.chat:
        return core.tokenizer.encode(prompt)
    from tiefsee.text import load_chat_format

    rendered = load_chat_format(core.folder, options.chat_format).render(
        [{"role": "user", "content": prompt}], thinking=options.thinking, effort=options.effort
    )
    return rendered.token_ids(core.tokenizer)


def sampling_from(options: argparse.Namespace, usual_max_tokens: int | None) -> Sampling:
    from tiefsee.engine import Sampling

    return Sampling(
        max_tokens=usual_max_tokens if options.max_tokens is None else options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        stop=tuple(options.stop),
        ignore_eos=options.ignore_eos,
    )


@dataclass
class Stream:
    """One streamed answer and its clock. TTFT counts from the queueing of the prompt to the first token."""

    core: EngineCore
    num_prompt_tokens: int
    began: float
    first: float | None = None
    last: float = 0.0
    num_tokens: int = 0
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    interrupted: bool = False

    def take(self, delta: Delta) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.num_tokens += len(delta.token_ids)
        self.text += delta.text
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.error = delta.error

    def report(self) -> str:
        """One line: tokens, TTFT, tokens/s of the decode, acceptance of drafts."""
        if not self.num_tokens or self.first is None:
            return "[no token came]"
        parts = [
            f"{self.num_prompt_tokens} prompt tokens, {self.num_tokens} new",
            f"TTFT {self.first - self.began:.2f} s",
        ]
        if self.num_tokens > 1 and self.last > self.first:
            parts.append(f"{(self.num_tokens - 1) / (self.last - self.first):.1f} tokens/s")
        if self.core.counters.drafted_tokens:
            parts.append(f"{self.core.counters.acceptance:.0%} of {self.core.counters.drafted_tokens} drafts accepted")
        parts.append("interrupted" if self.interrupted else f"ended by {self.finish_reason}")
        return "[" + ", ".join(parts) + "]"


def stream_answer(
    core: EngineCore, prompt_ids: list[int], sampling: Sampling, show: Any, *, opening: str = ""
) -> Stream:
    """Generate one answer; `show(text)` hears `opening` once the prompt is accepted, then each piece. Ctrl-C ends
    it cleanly, what came stays."""
    stream = Stream(core, len(prompt_ids), time.perf_counter())

    def on_delta(_: int, delta: Delta) -> None:
        stream.take(delta)
        show(delta.text)

    group = core.add(prompt_ids, sampling, on_delta)
    show(opening)
    try:
        while core.has_work():
            core.step()
    except KeyboardInterrupt:
        stream.interrupted = True
        core.cancel(group[0])
    return stream


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
