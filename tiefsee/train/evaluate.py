"""What a trained model is measured by: bits per byte of held-out prose, right answers to held-out tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiefsee.train import tasks
from tiefsee.train.shards import Shard, held_out_windows


def bits_per_byte(nll_nats: float, num_bytes: int) -> float:
    """Summed negative log likelihood in nats over bytes of text: comparable between vocabularies."""
    return nll_nats / math.log(2) / num_bytes


@dataclass(frozen=True)
class HeldOutBatch:
    """Windows side by side, as training packs them; `num_bytes` is the text behind their targets."""

    tokens_T: Tensor
    lengths: list[int]
    num_bytes: int


def held_out_batches(
    shard: Shard, tokens_per_window: int, windows_per_batch: int, max_windows: int | None = None
) -> Iterator[HeldOutBatch]:
    """The shard, or `max_windows` windows evenly over it; the same at every call.

    Every window starts with BOS and no context, so longer windows give lower figures: name the length.
    """
    windows = list(held_out_windows(shard, tokens_per_window, max_windows))
    for first in range(0, len(windows), windows_per_batch):
        chunk = windows[first : first + windows_per_batch]
        tokens_T = torch.from_numpy(np.concatenate([window for window, _ in chunk]))
        yield HeldOutBatch(tokens_T, [len(window) for window, _ in chunk], sum(count for _, count in chunk))


@dataclass(frozen=True)
class TaskScore:
    """Right answers out of `num_problems`; `examples` are the first few (prompt, answer, wanted)."""

    num_right: int
    num_problems: int
    examples: tuple[tuple[str, str, str], ...]

    @property
    def accuracy(self) -> float:
        return self.num_right / max(1, self.num_problems)


def task_scores(
    generate: Callable[[Sequence[str]], Sequence[str]],
    num_problems: int,
    seed: int = 0,
    kinds: Sequence[str] = tuple(tasks.KINDS),
    levels: Sequence[int] = tasks.LEVELS,
    num_examples: int = 3,
) -> dict[str, TaskScore]:
    """Score by kind, `num_problems` of each, none of which training can have seen.

    `generate` continues prompts such as "Q: 17 + 25 = ?\\nA:"; only its first line counts. Fewer problems
    are asked where a kind and its levels do not have so many held out.
    """
    scores = {}
    for kind in kinds:
        source = tasks.problems(seed, held_out=True, kinds=[kind], levels=levels)
        chosen = [problem for problem, _ in zip(source, range(num_problems), strict=False)]
        answers = generate([problem.prompt for problem in chosen])
        marks = [tasks.check(p, a) for p, a in zip(chosen, answers, strict=True)]
        examples = [(p.prompt, a, p.answer) for p, a in zip(chosen, answers, strict=True)][:num_examples]
        scores[kind] = TaskScore(sum(marks), len(marks), tuple(examples))
    return scores
