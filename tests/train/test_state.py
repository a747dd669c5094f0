"""The state of a run: whole or not at all, and a run that was killed goes on bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tiefsee.errors import CheckpointError
from tiefsee.train import state as state_module
from tiefsee.train.state import load_state, save_state

# A run in miniature, in a process of its own: it prints one hexadecimal loss a step.
RUN = """
import sys
from pathlib import Path
import torch
from torch import nn
from tiefsee.train.optim import build_optimizer
from tiefsee.train.state import load_state, save_state

torch.set_num_threads(1)
folder, num_steps = Path(sys.argv[1]), int(sys.argv[2])
network = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
with torch.no_grad():
    for i, p in enumerate(network.parameters()):
        p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
optimizer = build_optimizer(network, 1e-2, 0.1)
state = load_state(folder)
first = 0
if state is not None:
    first = state["step"]
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
for step in range(first, num_steps):
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
    loss = (network(x) - x.roll(1, -1)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(step, loss.item().hex(), flush=True)
    if step % 3 == 2:
        saved = {"step": step + 1, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(folder, saved)
"""
NUM_STEPS = 60


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(folder), str(NUM_STEPS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def losses(output: str) -> dict[int, str]:
    # The last line of a killed process may be cut.
    rows = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return {int(step): loss for step, loss in rows}


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = start(tmp_path / "straight")
    killed = start(tmp_path / "killed")
    assert killed.stdout is not None
    head = killed.stdout.readline() + killed.stdout.readline()
    time.sleep(int.from_bytes(os.urandom(1), "big") / 256 * 0.1)  # any moment, in the middle of a save too
    killed.send_signal(signal.SIGKILL)
    killed_losses = losses(head + killed.stdout.read())
    killed.wait()
    wanted = losses(straight.communicate()[0])
    assert set(wanted) == set(range(NUM_STEPS))
    resumed_losses = losses(start(tmp_path / "killed").communicate()[0])
    assert killed_losses.items() <= wanted.items()
    assert resumed_losses.items() <= wanted.items()
    assert set(killed_losses) | set(resumed_losses) == set(wanted)


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    for step in (5, 10, 15):
        save_state(tmp_path, {"step": step, "x": torch.full((3,), step)}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-00000010.pt", "state-00000015.pt"]
    newest = load_state(tmp_path)
    assert newest is not None
    assert newest["step"] == 15
    assert newest["x"].tolist() == [15, 15, 15]


def test_a_full_disk_leaves_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, {"step": 1})

    def full(state, file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*earlier states are untouched"):
        save_state(tmp_path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["state-00000001.pt"]
    assert load_state(tmp_path) == {"step": 1}


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state-00000007.pt").write_bytes(b"no state")
    with pytest.raises(CheckpointError, match=r"state-00000007\.pt"):
        load_state(tmp_path)
