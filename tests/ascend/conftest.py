"""What the tests of Ascend need: torch_npu, and a card, real or emulated.

make ascend-emulated     an environment of its own, with torch_npu on the emulated CANN (tests/fakecann)
make ascend-hardware     the same tests on a machine with a card
"""

from __future__ import annotations

import importlib.util
import os

import pytest

from tiefsee import leave_vendors_out

leave_vendors_out()  # without CANN, `import torch` fails otherwise, and these tests with it instead of being skipped

import torch  # noqa: E402

from tiefsee.errors import DeviceError  # noqa: E402

EMULATED = "FAKECANN_START" in os.environ


@pytest.fixture(scope="session")
def npu() -> torch.device:
    """A card that torch_npu sees; skipped where there is none."""
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("needs torch_npu: run `make ascend-emulated`")
    from tiefsee.ops import open_device

    try:
        return open_device("npu:0")
    except DeviceError as error:
        pytest.skip(f"needs a card, real or emulated (`make ascend-emulated`): {error}")


@pytest.fixture(scope="session")
def emulated(npu: torch.device) -> torch.device:
    """The emulated card: for what only the emulator can tell."""
    if not EMULATED:
        pytest.skip("needs the emulated CANN: run `make ascend-emulated`")
    return npu


@pytest.fixture
def soc(emulated: torch.device) -> str:
    return os.environ["FAKECANN_SOC"]


@pytest.fixture(autouse=True)
def nothing_falls_back_to_the_cpu(recwarn):
    """torch_npu warns where it has no kernel and computes on the host: here that is an error."""
    yield
    fallen = [str(w.message) for w in recwarn if "fall back to run on the CPU" in str(w.message)]
    assert fallen == []
