"""What would run on the card, written down: a change of it is seen in review.

Each file of traces/ holds the aclnn calls of one prefill of 50 tokens and of one decode step, in BF16, with tensors'
dtypes and shapes; V3 and V4 also with INT8 weights, which is how a card of this kind would serve them. After a change
that is meant: `make ascend-traces`, and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ascend.models import FAMILIES, save_checkpoint
from tests.tiny import prompt
from tiefsee import LLM, Sampling

TRACES = Path(__file__).parent / "traces"
TRACED = (*FAMILIES, "v3-int8", "v4-int8")
SOC = "Ascend910B3"  # one is enough: Ascend910_9391 makes the same calls (asserted below)


def trace(name: str, folder: Path) -> list[str]:
    from tests.fakecann.emulator import record

    family, _, format = name.partition("-")
    model = save_checkpoint(family, "bfloat16", folder / family)
    llm = LLM(model, device="npu:0", max_context=1024, max_draft=0, format=format or "auto")
    llm.generate(prompt(3), Sampling(temperature=0, max_tokens=2, ignore_eos=True))  # masks and tables are made once
    with record() as lines:
        llm.generate(prompt(50), Sampling(temperature=0, max_tokens=2, ignore_eos=True))
    return fold(lines)


def fold(lines: list[str]) -> list[str]:
    """Runs of the same few calls, one time each with their number: Sinkhorn, and loops over segments."""
    folded: list[str] = []
    place = 0
    while place < len(lines):
        for length in (1, 2, 3, 4, 5, 6):
            unit, times = lines[place : place + length], 1
            while lines[place + times * length : place + (times + 1) * length] == unit:
                times += 1
            if times > 2:
                folded += [f"{times} times {{", *(f"    {line}" for line in unit), "}"]
                place += times * length
                break
        else:
            folded.append(lines[place])
            place += 1
    return folded


@pytest.mark.parametrize("name", TRACED)
def test_the_calls_are_those_of_the_file(name, soc, tmp_path):
    if not soc.startswith("Ascend910"):
        pytest.skip("traces are of 910B and 910C")
    found = trace(name, tmp_path)
    file = TRACES / f"{name}.txt"
    if os.environ.get("WRITE_TRACES") and soc == SOC:
        TRACES.mkdir(exist_ok=True)
        file.write_text("\n".join(found) + "\n")
    needed = file.read_text().splitlines()
    different = next((i for i, (a, b) in enumerate(zip(found, needed, strict=False)) if a != b), None)
    assert found == needed, f"first difference in line {different}; if it is meant: make ascend-traces"


def test_folding_loses_nothing():
    lines = ["a", "b", "c", "b", "c", "b", "c", "d", "d", "d", "d", "e", "e"]
    assert fold(lines) == ["a", "3 times {", "    b", "    c", "}", "4 times {", "    d", "}", "e", "e"]
