"""The state of a run on disk: whole or not at all, the newest few kept.

A state holds everything that the next step depends on; a training step draws no random numbers, and batches
follow from (seed, step), so model, optimizer and step are enough for an exact resume.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from tiefsee.errors import CheckpointError

KEEP = 2
FILE = re.compile(r"state-(\d{8})\.pt")


def save_state(folder: Path, state: dict[str, Any], keep: int = KEEP) -> Path:
    """Write state-STEP.pt for `state["step"]` and delete all but the newest `keep`.

    Written aside, flushed to disk, then renamed: a kill or a full disk at any moment leaves the states that
    were there. Raises CheckpointError if it cannot be written.
    """
    assert keep >= 1
    path = folder / f"state-{state['step']:08d}.pt"
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot save {path}: {error}; earlier states are untouched; free space or choose another folder"
        ) from error
    for old in _states(folder)[:-keep]:
        old.unlink()
    return path


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state, on the CPU; None if there is none. Raises CheckpointError if it cannot be read."""
    states = _states(folder)
    if not states:
        return None
    try:
        state: dict[str, Any] = torch.load(states[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many kinds
        raise CheckpointError(
            f"cannot read {states[-1]}: {error}; it should be a state that training saved; "
            "delete the file to resume from the one before it"
        ) from error
    return state


def _states(folder: Path) -> list[Path]:
    """By step, the oldest first."""
    return sorted(path for path in folder.glob("state-*.pt") if FILE.fullmatch(path.name))


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk only with the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
