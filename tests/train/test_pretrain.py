"""The pretraining loop on the real network: it learns, resumes exactly, balances experts, and ships what it trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.tiny import CONFIGS, relative_error
from tiefsee import LLM
from tiefsee.checkpoint import save_network
from tiefsee.model import Network
from tiefsee.model.initialise import initialise
from tiefsee.ops import Operators
from tiefsee.ops.view import StatelessView
from tiefsee.spec import model_spec
from tiefsee.train.balance import ExpertBalance
from tiefsee.train.loss import packed_losses
from tiefsee.train.pretrain import PretrainConfig, pretrain

SPEC = model_spec(CONFIGS["v4"])


def new_network(seed: int = 0) -> Network:
    network = Network(SPEC, Operators())
    initialise(network, seed)
    return network


class Counting:
    """Documents that count upwards: what follows a token is its successor."""

    def batch(self, step: int) -> tuple[torch.Tensor, list[int]]:
        rng = np.random.default_rng(step)
        lengths = [40, 25, 2, 33]
        rows = [(rng.integers(2, 90) + np.arange(n)) % 90 + 2 for n in lengths]
        return torch.from_numpy(np.concatenate(rows)), lengths


def run(network, folder, steps, losses, config=None):
    config = config or PretrainConfig(num_steps=steps, warmup_steps=5, save_every=3, evaluate_every=100)
    return pretrain(
        network, Counting(), config, folder, lambda n: {}, lambda p: losses.append((p.step, p.loss, p.mtp_loss))
    )


def test_it_learns_and_so_does_mtp(tmp_path):
    losses: list[tuple[int, float, float]] = []
    assert run(new_network(), tmp_path, 60, losses)
    assert losses[0][1] == pytest.approx(np.log(97), rel=0.05)
    assert losses[-1][1] < 1.0
    assert losses[-1][2] < 1.5
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 60


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    whole: list[tuple[int, float, float]] = []
    run(new_network(), tmp_path / "whole", 8, whole)
    parts: list[tuple[int, float, float]] = []
    config = PretrainConfig(num_steps=8, warmup_steps=5, save_every=3, evaluate_every=100)

    class Killed(Exception):
        pass

    class KilledAtFive(Counting):
        def batch(self, step):
            if step == 5:
                raise Killed
            return super().batch(step)

    with pytest.raises(Killed):
        pretrain(new_network(), KilledAtFive(), config, tmp_path / "parts", lambda n: {}, lambda p: None)
    run(new_network(seed=7), tmp_path / "parts", 8, parts, config)  # other first values: the state counts
    assert parts == whole[3:]  # from the state saved after step 3


def test_documents_do_not_see_each_other():
    network = new_network()
    a, b = torch.arange(2, 60), torch.arange(30, 75)
    with torch.inference_mode():
        together = packed_losses(network, torch.cat((a, b)), [len(a), len(b)])
        alone = [packed_losses(network, d, [len(d)]) for d in (a, b)]
    mean = sum(x.next_token * x.num_targets for x in alone) / sum(x.num_targets for x in alone)
    torch.testing.assert_close(together.next_token, mean)
    weights = [len(a) - 2, len(b) - 2]
    mtp = sum(x.mtp[0] * w for x, w in zip(alone, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(together.mtp[0], mtp)


def test_mtp_sees_the_state_before_and_the_token_after():
    """The draft for p + 2 changes with token p + 1, and not with token p + 2 itself."""
    network = new_network()

    def draft(tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor(tokens)
        with torch.inference_mode():
            hidden = network(ids, torch.arange(len(ids)), StatelessView([len(ids)]))
            positions = torch.arange(1, len(ids))
            view = StatelessView([len(ids) - 1], origin=1)
            return network.draft(0, ids[1:], positions, hidden.draft_TXD[:-1], view).final_TD

    base, other_end = draft([5, 6, 7, 8, 9]), draft([5, 6, 7, 8, 60])
    torch.testing.assert_close(base[:3], other_end[:3])
    assert (base[3] - other_end[3]).abs().max() > 1e-2


def test_the_bias_moves_load_towards_the_mean():
    network = new_network()
    gate = network.layers[2].ffn.gate
    balance = ExpertBalance(network, speed=0.5)
    gate.load_E += torch.tensor([10.0, 0, 0, 0, 0, 2])
    assert balance.step() == pytest.approx(5.0)
    assert gate.bias.tolist() == [-0.5, 0.5, 0.5, 0.5, 0.5, 0.0]
    assert gate.load_E.sum() == 0


def test_the_trained_network_is_the_served_one(tmp_path):
    network = new_network()
    run(network, tmp_path / "state", 10, [])
    save_network(network, SPEC, {**CONFIGS["v4"], "torch_dtype": "float32"}, tmp_path / "model")
    tokens = list(range(5, 60))
    with torch.inference_mode():
        hidden = network(torch.tensor(tokens), torch.arange(55), StatelessView([55]))
        trained = network.logits(hidden.final_TD)
    served = LLM(tmp_path / "model", dtype="float32").logits([tokens])[0]
    assert relative_error(served, trained) < 1e-5
