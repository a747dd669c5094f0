"""The order of the packages (docs/structure.md): every import, also inside functions, points downwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tiefsee"

LEVELS = {
    "errors": -2,  # level 0 in the picture; units and streams raise its exceptions too
    "layouts": -1,  # level 0 as well; streams ask it for bytes
    **dict.fromkeys(("units", "streams"), 0),
    **dict.fromkeys(("spec", "hardware", "schedule", "files", "text"), 1),
    **dict.fromkeys(("ops", "plan"), 2),
    **dict.fromkeys(("model", "checkpoint"), 3),
    "engine": 4,
    **dict.fromkeys(("serve", "train", "parity"), 5),
    "fleet": 6,
    "cli": 7,
    "__main__": 8,
    "models": 7,  # the bundled weights: data, and nobody imports it from below
}
# Within `plan`, in the order of a question: each imports only from houses before it (docs/structure.md).
PLAN = (
    "names", "figures", "evidence", "report", "training", "fitted", "times", "serving", "question", "answers",
    "predictor", "identify", "search", "mixed", "simulate", "documents", "fitting", "accuracy",
)  # fmt: skip
# The names that tiefsee/__init__.py hands out, and the package that each of them really comes from.
EXPORTS = dict.fromkeys(("LLM", "Sampling", "Engine"), "engine")
# `plan` is for cli and fleet only: the engine that it predicts must not depend on it.
MAY_IMPORT_PLAN = {"fleet", "cli"}
TORCH_FREE = {name for name, level in LEVELS.items() if level <= 1} | {"plan"}
TORCH = {"torch", "torch_npu", "triton", "transformers", "accelerate", "safetensors.torch"}


def imported_names(tree: ast.AST, module: list[str]) -> list[str]:
    """Dotted names of everything that a module imports, however deep; relative imports are resolved.

    `module` is the dotted place of the file's package, e.g. ["tiefsee", "spec"].
    """
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                names.append(str(node.args[0].value))
    return names


def violations(root: Path) -> list[str]:
    """One sentence per import under the package at `root` that breaks the order."""
    found = []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place == Path("__init__.py"):
            continue  # hands out names lazily; tests/test_lazy.py watches it
        own = place.parts[0].removesuffix(".py")
        module = ["tiefsee", *place.parts[:-1]]
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8")), module):
            complaint = judge(own, name) or judge_plan(place.parts, name)
            if complaint:
                found.append(f"{place}: {complaint}")
    return found


def judge(own: str, name: str) -> str | None:
    """What is wrong with package `own` importing the dotted `name`, or None."""
    if own not in LEVELS:
        return f"package {own!r} has no level; enter it in this test and in docs/structure.md"
    if own in TORCH_FREE and any(name == lib or name.startswith(lib + ".") for lib in TORCH):
        return f"{own} must do without torch, but imports {name}"
    parts = name.split(".")
    if parts[0] != "tiefsee" or parts[1:] in (["__version__"], ["leave_vendors_out"], []):
        return None
    other = EXPORTS.get(parts[1], parts[1])
    if other == own:
        return None
    if other not in LEVELS:
        return f"{other!r} has no level; enter it in this test and in docs/structure.md"
    if LEVELS[other] >= LEVELS[own]:
        return f"{own} (level {LEVELS[own]}) must not import {other} (level {LEVELS[other]})"
    if other == "plan" and own not in MAY_IMPORT_PLAN:
        return f"{own} must not import plan"
    return None


def judge_plan(place: tuple[str, ...], name: str) -> str | None:
    """What is wrong with a module of `plan` importing the dotted `name`, or None."""
    parts = name.split(".")
    if place[0] != "plan" or place[1] == "__init__.py" or parts[:2] != ["tiefsee", "plan"]:
        return None
    own, other = place[1].removesuffix(".py"), parts[2]
    strange = next((house for house in (own, other) if house not in PLAN), None)
    if strange:
        return f"plan/{strange} has no place; enter it in this test and in docs/structure.md"
    if own != other and PLAN.index(other) >= PLAN.index(own):
        return f"plan/{own} must not import plan/{other}, which stands after it"
    return None


def test_every_import_points_downwards():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("place", "code", "word"),
    [
        ("spec/a.py", "def f():\n    from tiefsee import engine", "must not import engine"),
        ("spec/a.py", "def f():\n    from tiefsee import LLM", "must not import engine"),
        ("spec/a.py", "from tiefsee.schedule.batch import Batch", "must not import schedule"),
        ("spec/a.py", "from ..files import find_model", "must not import files"),
        ("errors.py", "import tiefsee.units", "must not import units"),
        ("model/a.py", "class A:\n    import tiefsee.checkpoint.load as x", "must not import checkpoint"),
        ("engine/a.py", "from tiefsee import plan", "must not import plan"),
        ("schedule/a/b.py", "def f():\n    import torch.nn as nn", "without torch"),
        ("plan/a.py", "from torch import Tensor", "without torch"),
        ("plan/serving/a.py", "from tiefsee.plan.search.find import search", "which stands after it"),
        ("plan/times/a.py", "def f():\n    from tiefsee.plan import predictor", "which stands after it"),
        ("plan/misc.py", "from tiefsee.plan.names.dates import full_date", "has no place"),
        ("files/a.py", "from safetensors.torch import load_file", "without torch"),
        (
            "text/a.py",
            "import importlib\nimportlib.import_module('tiefsee.engine')",
            "must not import engine",
        ),
        ("misc/a.py", "import os", "has no level"),
    ],
)
def test_planted_violation_is_caught(tmp_path, place, code, word):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    (complaint,) = violations(tmp_path)
    assert word in complaint


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("engine/a.py", "import torch\nfrom tiefsee.model import Transformer\nfrom tiefsee import errors"),
        ("spec/a.py", "from . import b\nfrom .b import c\nfrom ..errors import ConfigError\nimport math"),
        ("cli.py", "def run():\n    from tiefsee import LLM, __version__"),
    ],
)
def test_allowed_imports_pass(tmp_path, place, code):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert violations(tmp_path) == []
