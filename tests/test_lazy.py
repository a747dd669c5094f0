"""What only answers questions starts without torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

BLOCKER = textwrap.dedent(
    """
    import sys

    class NoTorch:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "triton", "torch_npu"):
                raise ImportError(f"{name} is blocked in this process")

    sys.meta_path.insert(0, NoTorch())
    """
)


def run_without_torch(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKER + code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["tiefsee", *(f"tiefsee.{p}" for p in ("spec", "files", "schedule", "text"))])
def test_import_works_without_torch(name):
    done = run_without_torch(f"import {name}\nassert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_blocker_blocks():
    done = run_without_torch("import torch")
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr


def test_exports_are_listed_and_unknown_names_refused():
    import tiefsee

    assert {"LLM", "Sampling", "Engine", "__version__"} <= set(dir(tiefsee))
    with pytest.raises(AttributeError, match="Sampler"):
        tiefsee.Sampler  # noqa: B018
