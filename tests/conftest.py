"""Options and fixtures that every test may use.

`--device cuda` runs the tests that take the `device` fixture on another device; the default is the CPU.
`-p tests.pure_npu --device npu` makes that another one a device that only Python knows.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

# Wall-clock deadlines fail on a busy machine, not on a wrong program.
settings.register_profile("tiefsee", deadline=None)
settings.load_profile("tiefsee")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that tests compute on: cpu, cuda, ...")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Name of the device under test, as `torch.device` and `LLM(device=)` take it."""
    name: str = request.config.getoption("--device")
    if name != "cpu":
        from tiefsee.errors import DeviceError
        from tiefsee.ops import open_device

        try:
            open_device(name)
        except DeviceError as error:
            pytest.exit(f"--device {name}: {error}", returncode=2)
    return name
