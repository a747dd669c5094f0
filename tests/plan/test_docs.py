"""docs/plan.md: every command in it is run, and what it prints is what stands there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def plan_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_page", DOCS / "plan_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_page"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TOOL = plan_page()
TEXT = TOOL.PAGE.read_text()
BLOCKS = TOOL.blocks(TEXT)


@pytest.mark.parametrize("block", BLOCKS, ids=[" ".join(block.command.split()[2:7]) for block in BLOCKS])
def test_what_a_command_prints_stands_on_the_page(block):
    with TOOL.files_of(TEXT):
        found = TOOL.differences(block.text, block.printed())
    assert not found, f"{found}: write the page anew with `python docs/plan_page.py`"


def test_the_five_questions_are_there():
    commands = " ".join(block.command for block in BLOCKS)
    for words in (
        "h200:32", "--prefill ascend-910c:64 --decode h20:16", "ascend-910c:32000", "h800:2048",
        "v3 --chips ascend-910c:2048", "ascend-950dt", "mychip.toml", "plan identify", "plan rl",
    ):  # fmt: skip
        assert words in commands


def test_the_fitted_values_are_those_that_are_shipped():
    assert TOOL.fitted_table() in TEXT


def test_differences_are_told():
    assert TOOL.differences("22,000 tokens/s (18,000 .. 27,000)", "23,000 tokens/s (18,000 .. 27,000)") == []
    assert TOOL.differences("22,000 tokens/s", "24,000 tokens/s")
    assert TOOL.differences("0.64 USD", "0.65 USD") == []
    assert TOOL.differences("0.64 USD", "0.66 USD")
    assert TOOL.differences("TP8 on 8 h200", "TP4 on 8 h200")
    assert TOOL.differences("a b", "a b c")
    assert TOOL.differences("memory", "tpot")
