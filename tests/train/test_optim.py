"""The optimizer: orthogonal updates of the promised size, the right parameters, an exact state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tiefsee.errors import CheckpointError, ConfigError
from tiefsee.train.learning_rate import learning_rate
from tiefsee.train.muon import Muon, orthogonalise
from tiefsee.train.optim import build_optimizer


class Tiny(nn.Module):
    """A network with one parameter of each sort that the family has."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in {
            "embed.weight": (9, 8), "head.weight": (9, 8), "layers.0.attn.wq_a.weight": (4, 8),
            "layers.0.ffn.experts.w1": (3, 6, 8), "layers.0.ffn.gate.weight": (3, 8),
            "layers.0.hc_attn_fn": (5, 8), "layers.0.attn_norm.weight": (8,),
            "layers.0.attn.compressor.ape": (4, 8),
        }.items():  # fmt: skip
            module: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(leaf, nn.Parameter(torch.randn(shape, generator=generator)))

    def set_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(1000 + step)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (3, 16, 32), (5, 33, 7)])
def test_newton_schulz_makes_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrix)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert (result - u @ vh).abs().max() < 0.02
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


def test_a_stack_is_updated_as_its_members_alone() -> None:
    stack = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([orthogonalise(m) for m in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, atol=1e-5, rtol=1e-4)


def test_updates_have_the_size_of_adamws() -> None:
    """RMS 0.2 per element of a square matrix, whatever the gradient's scale (Moonlight, section 2.2)."""
    for scale in (1e-6, 1.0, 1e4):
        weight = nn.Parameter(torch.zeros(64, 64))
        weight.grad = scale * torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
        Muon([weight], learning_rate=1.0, weight_decay=0.0).step()
        assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.02)


def test_who_moves_what() -> None:
    network = Tiny()
    optimizer = build_optimizer(network, 1e-3, 0.1)
    muon = {id(p) for p in optimizer.muon.parameters}
    assert {n for n, p in network.named_parameters() if id(p) in muon} == {
        "layers.0.attn.wq_a.weight",
        "layers.0.ffn.experts.w1",
    }
    decayed, kept = optimizer.adam.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {id(network.embed.weight), id(network.layers.get_submodule("0").attn_norm.weight)} == {
        id(p) for p in kept["params"]
    }
    assert not build_optimizer(network, 1e-3, 0.1, method="adamw").muon.parameters


@pytest.mark.parametrize("method", ["muon", "adamw"])
def test_steps_are_deterministic_and_the_state_is_exact(method: str) -> None:
    def run(network: Tiny, optimizer, steps: range) -> None:
        for step in steps:
            network.set_gradients(step)
            optimizer.set_learning_rate(1e-2 / (step + 1))
            optimizer.step()
            optimizer.zero_grad()

    straight = Tiny()
    run(straight, build_optimizer(straight, 1e-2, 0.1, method=method), range(6))
    first = Tiny()
    optimizer = build_optimizer(first, 1e-2, 0.1, method=method)
    run(first, optimizer, range(3))
    resumed = Tiny(seed=99)
    resumed.load_state_dict(first.state_dict())
    again = build_optimizer(resumed, 1e-2, 0.1, method=method)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(resumed, again, range(3, 6))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    assert not torch.equal(straight.head.weight, first.head.weight)


def test_parameters_without_gradient_stay() -> None:
    network = Tiny()
    before = copy.deepcopy(network.state_dict())
    build_optimizer(network, 1e-2, 0.1).step()
    assert all(torch.equal(before[n], p) for n, p in network.state_dict().items())


def test_a_state_of_another_method_is_refused() -> None:
    state = build_optimizer(Tiny(), 1e-3, 0.1, method="adamw").state_dict()
    with pytest.raises(CheckpointError, match="start a new folder"):
        build_optimizer(Tiny(), 1e-3, 0.1).load_state_dict(state)


def test_learning_rate_of_the_documented_run() -> None:
    rates = {s: learning_rate(s, 1.0, 100, 1000, 0.4) for s in (0, 99, 100, 599, 600, 800, 999)}
    assert rates == pytest.approx({0: 0.01, 99: 1, 100: 1, 599: 1, 600: 1, 800: 0.5, 999: 0.0025})


@pytest.mark.parametrize(("warmup", "share"), [(700, 0.4), (10, 1.5), (-1, 0.1)])
def test_schedules_that_do_not_fit(warmup: int, share: float) -> None:
    with pytest.raises(ConfigError, match="train longer"):
        learning_rate(0, 1.0, warmup, 1000, share)
