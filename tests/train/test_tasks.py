"""Generated problems: seeded, right, checkable, and never on both sides of the split."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from tiefsee.errors import ConfigError
from tiefsee.train.evaluate import task_scores
from tiefsee.train.tasks import KINDS, Problem, check, documents, problems


def solve(question: str) -> str:
    """An independent solver, from the question's text alone."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if "+" in question:
        return str(sum(numbers))
    if question.startswith("Which is"):
        return str(max(numbers) if "larger" in question else min(numbers))
    if question.startswith("Sort"):
        return ", ".join(str(n) for n in sorted(numbers))
    verb, words = question.split(": ")
    return words if verb == "Copy" else " ".join(words.split()[::-1])


def test_answers_are_right_and_splits_disjoint() -> None:
    train = list(itertools.islice(problems(1, held_out=False), 3000))
    held_out = list(itertools.islice(problems(2, held_out=True), 800))
    for problem in (*train, *held_out):
        assert problem.answer == solve(problem.question)
        assert check(problem, f" {problem.answer}\n\nQ: more")
    assert {p.kind for p in train} == {p.kind for p in held_out} == set(KINDS)
    assert {p.question for p in train}.isdisjoint(p.question for p in held_out)
    assert len({p.question for p in held_out}) == len(held_out)


def test_the_seed_decides() -> None:
    assert list(documents(20, 4, held_out=False)) == list(documents(20, 4, held_out=False))
    assert list(documents(20, 4, held_out=False)) != list(documents(20, 5, held_out=False))


def test_numbers_of_every_length_are_as_frequent() -> None:
    chosen = itertools.islice(problems(0, held_out=False, kinds=["addition"], levels=[3]), 2000)
    digits = Counter(len(n) for p in chosen for n in re.findall(r"\d+", p.question))
    assert min(digits[n] for n in (1, 2, 3)) > 0.25 * sum(digits.values())


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" 42", True), ("42\nmore", True), ("", False), ("421", False), ("4 2", False), ("\n42", False)],
)
def test_check_wants_the_exact_first_line(answer: str, right: bool) -> None:
    assert check(Problem("addition", 2, "17 + 25 = ?", "42"), answer) is right


def test_a_kind_runs_out_instead_of_repeating() -> None:
    few = list(problems(0, held_out=True, kinds=["addition"], levels=[1]))
    assert 0 < len(few) == len({p.question for p in few}) < 20


def test_scores() -> None:
    def half(prompts: list[str]) -> list[str]:
        right = [" " + solve(p.splitlines()[0].removeprefix("Q: ")) for p in prompts]
        return [r if i % 2 == 0 else " no idea" for i, r in enumerate(right)]

    scores = task_scores(half, 20, kinds=["sorting", "copying"])
    assert {kind: s.accuracy for kind, s in scores.items()} == {"sorting": 0.5, "copying": 0.5}


def test_unknown_kinds() -> None:
    with pytest.raises(ConfigError, match="kinds are addition"):
        next(problems(0, held_out=False, kinds=["division"]))
