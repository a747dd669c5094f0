"""Finding torch_npu, CANN behind it, and the card; each that is missing is one error that says what to do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from contextlib import redirect_stdout
from types import ModuleType

import torch

from tiefsee.errors import DeviceError
from tiefsee.ops.ascend.chip import AscendChip, chip_of

INSTALL = "pip install 'tiefsee[ascend]'"
CANN = "CANN (toolkit and the kernels of the chip, hiascend.com or the image ascendai/cann), then its set_env.sh"


def open_device(name: str) -> torch.device:
    """The torch device; DeviceError without torch_npu, without CANN, or without such a card."""
    npu = load_torch_npu().npu
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not a device name; try 'npu' or 'npu:0'") from error
    count = _count(npu)
    if count == 0:
        raise DeviceError(
            f"device {name!r} was asked for, but CANN sees no Ascend card; does `npu-smi info` list one, "
            "and is ASCEND_RT_VISIBLE_DEVICES right?"
        )
    index = device.index or 0
    if index >= count:
        raise DeviceError(f"device {name!r} was asked for, and CANN sees {count}: the last one is npu:{count - 1}")
    return torch.device("npu", index)


def chip_at(device: torch.device) -> AscendChip:
    return chip_of(load_torch_npu().npu.get_device_name(device.index or 0))


def load_torch_npu() -> ModuleType:
    """torch_npu; importing it registers `torch.ops.npu` and the device name "npu"."""
    if importlib.util.find_spec("torch_npu") is None:
        raise DeviceError(f"device 'npu' needs torch_npu, which is not installed; {INSTALL} (and {CANN})")
    try:
        # What it prints and warns of at import (owners of CANN's folders, variables) is no part of an answer on stdout.
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            return importlib.import_module("torch_npu")
    except (ImportError, RuntimeError, OSError) as error:
        sourced = "is set" if os.environ.get("ASCEND_HOME_PATH") else "is not set"
        raise DeviceError(
            f"torch_npu is installed but does not load: {_first_line(error)}. It needs {CANN} "
            f"(ASCEND_HOME_PATH {sourced}); without a card here, use --device cpu"
        ) from error


def _count(npu: ModuleType) -> int:
    try:
        return int(npu.device_count())
    except RuntimeError:
        return 0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
