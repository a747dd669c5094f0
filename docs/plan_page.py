"""docs/plan.md holds itself to its word: the commands in it and what they print, and the table of what was fitted.

    python docs/plan_page.py            writes them anew, after a fit or a change of the model of time
    tests/plan/test_docs.py             runs every command and compares

A block of the page is a comment that names sections of the output (answer, figures, the title of a table), and a fenced
console: one command, and those sections. Files that commands read are fenced too, under a comment with their name.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("plan.md")
_BLOCK = re.compile(r"<!-- show: (?P<show>.*?) -->\n```console\n\$ (?P<command>.*?)\n(?P<text>.*?)```\n", re.DOTALL)
_FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w*\n(?P<text>.*?)```\n", re.DOTALL)
_FITTED = re.compile(r"(?<=<!-- fitted -->\n).*?(?=\n\n)", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    show: tuple[str, ...]
    command: str
    text: str

    def printed(self) -> str:
        """The chosen sections of what the command prints now."""
        from tiefsee.cli import main

        out = io.StringIO()
        with redirect_stdout(out):
            status = main(shlex.split(self.command.replace("\\\n", " "))[1:])
        if status != 0:
            raise RuntimeError(f"{self.command} ended with {status}")
        return "\n".join(_section(out.getvalue(), name) for name in self.show)


def blocks(page: str) -> list[Block]:
    return [Block(tuple(m["show"].split(", ")), m["command"], m["text"]) for m in _BLOCK.finditer(page)]


def _section(text: str, name: str) -> str:
    """The answer, the figures, or the table of that title, with its last line's end."""
    parts = text.split("\n\n")
    if name in ("answer", "figures"):
        return parts[("answer", "figures").index(name) + 1].strip("\n") + "\n"
    found = next((part for part in parts if part.startswith(name)), None)
    if found is None:
        raise RuntimeError(f"no section of the output starts with {name!r}")
    lines = found.strip("\n").split("\n")
    notes = next((i for i, line in enumerate(lines) if line.startswith("note: ")), len(lines))
    return "\n".join(lines[:notes]) + "\n"


@contextmanager
def files_of(page: str) -> Iterator[Path]:
    """A folder, made the working one, with the files that the page describes."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for match in _FILE.finditer(page):
            Path(folder, match["name"]).write_text(match["text"])
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def differences(old: str, new: str) -> list[str]:
    """Words that differ, and numbers that differ by more than one in the last digit shown."""
    a, b = old.split(), new.split()
    if len(a) != len(b):
        return [f"{len(a)} words stand there, {len(b)} were printed:\n{new}"]
    return [f"{x} stands there, {y} was printed" for x, y in zip(a, b, strict=True) if not _alike(x, y)]


def _alike(a: str, b: str) -> bool:
    if set(a) == set(b) <= set("─#-+|"):
        return True  # bars and rules
    if _NUMBER.sub("0", a) != _NUMBER.sub("0", b):
        return a == b
    return all(
        abs(_value(x) - _value(y)) <= 1.001 * max(_last_digit(x), _last_digit(y))
        for x, y in zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    )


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _last_digit(number: str) -> float:
    """1 for 23, 1,000 for 22,000: one in the last digit that is no trailing zero, at most in the second."""
    mantissa, _, exponent = number.replace(",", "").lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    if fraction:
        return 10.0 ** (int(exponent or 0) - len(fraction))
    zeros = len(whole) - len(whole.rstrip("0")) if whole.strip("0") else 0
    return float(10 ** min(zeros, max(0, len(whole) - 2)))


def fitted_table() -> str:
    """The base efficiencies as they are shipped."""
    from tiefsee.plan.fitted.efficiency import FIELDS, calibration

    base = calibration().base
    lines = ["| fitted | value | | fitted | value |", "|---|---|---|---|---|"]
    shown = [f"`{name}` | {getattr(base, name):.3g}" for name in FIELDS]
    half = -(-len(shown) // 2)
    pairs = zip(shown[:half], [*shown[half:], " | "][:half], strict=True)
    return "\n".join([*lines, *(f"| {left} | | {right} |" for left, right in pairs)])


def written_anew(page: str) -> str:
    with files_of(page):
        for block in blocks(page):
            page = page.replace(f"$ {block.command}\n{block.text}```", f"$ {block.command}\n{block.printed()}```")
    return _FITTED.sub(lambda _: fitted_table(), page)


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parent.parent))
    PAGE.write_text(written_anew(PAGE.read_text()))
