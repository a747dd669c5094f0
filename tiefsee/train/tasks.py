"""Generated problems with answers that a program can check: addition, comparison, sorting, copying, reversal.

    Q: 17 + 25 = ?
    A: 42

A document is a few problems, a blank line between. Which problems are held out is decided by a hash of the
question, so a run can never meet them in training, whatever its seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tiefsee.errors import ConfigError

HELD_OUT_SHARE = 1 / 16
PROBLEMS_PER_DOCUMENT = (4, 12)  # about 170 tokens: many tiny documents would make attention a Python loop
WORDS = (
    "apple", "bear", "bird", "boat", "bread", "candle", "castle", "cat", "child", "cloud", "crown", "door",
    "dragon", "egg", "feather", "field", "fire", "fish", "flower", "forest", "fox", "garden", "giant", "girl",
    "gold", "goose", "hand", "hat", "hen", "hill", "horse", "house", "king", "knight", "lamp", "leaf", "lion",
    "milk", "mill", "moon", "mother", "mouse", "night", "ox", "pig", "prince", "queen", "rain", "ring",
    "river", "road", "rose", "sea", "ship", "shoe", "silver", "snow", "song", "star", "stone", "sun", "table",
    "tower", "tree", "wind", "wolf", "wood",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One question with its only right answer; `kind` is a key of KINDS."""

    kind: str
    level: int
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"Q: {self.question}\nA:"

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}"

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.question.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def check(problem: Problem, answer: str) -> bool:
    """Is the first line of `answer` exactly the problem's answer? Only surrounding blanks are forgiven."""
    lines = answer.strip(" ").splitlines()
    return bool(lines) and lines[0].strip() == problem.answer


def addition(rng: random.Random, level: int) -> tuple[str, str]:
    """Sums of numbers of up to `level` digits."""
    a, b = (_number(rng, level) for _ in range(2))
    return f"{a} + {b} = ?", str(a + b)


def comparison(rng: random.Random, level: int) -> tuple[str, str]:
    """The larger or the smaller of two different numbers of up to `level` + 1 digits."""
    a = _number(rng, level + 1)
    b = a
    while b == a:
        # Half of the pairs have the same number of digits: length alone must not decide.
        b = _number(rng, level + 1) if rng.random() < 0.5 else rng.randrange(*_digits_range(len(str(a))))
    word, pick = rng.choice((("larger", max), ("smaller", min)))
    return f"Which is {word}, {a} or {b}?", str(pick(a, b))


def sorting(rng: random.Random, level: int) -> tuple[str, str]:
    """2 + `level` numbers below 100 in rising order."""
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 2 + max(1, level)))]
    return f"Sort {_list(numbers)}.", _list(sorted(numbers))


def copying(rng: random.Random, level: int) -> tuple[str, str]:
    """Words to repeat, up to 2 x `level` of them."""
    words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 2 * max(1, level))))
    return f"Copy: {words}", words


def reversal(rng: random.Random, level: int) -> tuple[str, str]:
    """2 to 1 + 2 x `level` words in the opposite order."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(2, 1 + max(1, level)))]
    return f"Reverse: {' '.join(words)}", " ".join(reversed(words))


KINDS: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {
    "addition": addition,
    "comparison": comparison,
    "sorting": sorting,
    "copying": copying,
    "reversal": reversal,
}
LEVELS = (1, 2, 3)


def problems(
    seed: int, *, held_out: bool, kinds: Sequence[str] = tuple(KINDS), levels: Sequence[int] = LEVELS
) -> Iterator[Problem]:
    """Endless problems, all of the one split; the same arguments give the same sequence.

    Held-out problems do not repeat: an evaluation of n problems asks n different questions. So few exist at
    level 1 that the sequence ends there when no new one turns up.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds or not levels or min(levels) < 1:
        raise ConfigError(
            f"kinds {list(kinds)} and levels {list(levels)} name no problems; kinds are {', '.join(KINDS)} "
            "and levels count from 1"
        )
    rng = random.Random(f"{seed} {held_out}")
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        kind, level = rng.choice(list(kinds)), rng.choice(list(levels))
        problem = Problem(kind, level, *KINDS[kind](rng, level))
        misses += 1
        if problem.held_out != held_out or problem.question in seen:
            continue
        misses = 0
        if held_out:
            seen.add(problem.question)
        yield problem


def documents(num_documents: int, seed: int, *, held_out: bool) -> Iterator[str]:
    """Texts of 4 to 12 problems each, kinds and levels mixed."""
    rng = random.Random(f"{seed} {held_out} documents")
    source = problems(seed, held_out=held_out)
    for _ in range(num_documents):
        yield "\n\n".join(next(source).text for _ in range(rng.randint(*PROBLEMS_PER_DOCUMENT)))


def _digits_range(digits: int) -> tuple[int, int]:
    return (0 if digits == 1 else 10 ** (digits - 1)), 10**digits


def _number(rng: random.Random, max_digits: int) -> int:
    """Every number of digits alike: most numbers below 1,000 have three, and short sums would be rare."""
    return rng.randrange(*_digits_range(rng.randint(1, max_digits)))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
