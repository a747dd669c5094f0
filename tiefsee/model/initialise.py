"""First values of a network that is to be trained: normal matrices, neutral everything else."""

from __future__ import annotations

import torch

from tiefsee.model.experts import Gate
from tiefsee.model.network import Network


@torch.no_grad()
def initialise(network: Network, seed: int) -> None:
    """Fill every parameter, from one CPU generator, so that all devices start from the same values.

    Matrices are normal with the spec's `initializer_range`; norms, biases, sinks and position biases
    stay neutral; mHC starts as an even mix of streams that keep to themselves; the hash table of a
    hash-routed layer deals the experts out evenly.
    """
    generator = torch.Generator().manual_seed(seed)
    std = network.spec.initializer_range
    for name, parameter in network.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if parameter.dim() >= 2 and leaf != "ape":
            scale = 0.1 * std if leaf.endswith("_fn") else std
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        elif leaf.endswith("_base") and leaf.startswith(("hc_attn", "hc_ffn")):
            parameter.copy_(_identity_mix(network))
        elif leaf.endswith("_scale"):
            parameter.fill_(1.0)
    for name, buffer in network.named_buffers():
        if name.endswith("tid2eid"):
            buffer.copy_(_hash_table(network, name, buffer.shape, generator))


def _identity_mix(network: Network) -> torch.Tensor:
    """Base of mHC's three weights: read the mean of the streams, write to all, mix little between them."""
    assert network.spec.hyper is not None
    x = network.spec.hyper.hc_mult
    read = torch.full((x,), -torch.log(torch.tensor(x - 1.0)).item() if x > 1 else 4.0)
    return torch.cat((read, torch.zeros(x), (4.0 * torch.eye(x)).flatten()))


def _hash_table(network: Network, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """K distinct experts for every token id, each expert equally often to within one."""
    gate = network.get_submodule(name.rsplit(".", 1)[0])
    assert isinstance(gate, Gate)
    experts = len(gate.weight)
    rounds = -(-shape[0] * shape[1] // experts)
    rows = torch.stack([torch.randperm(experts, generator=generator) for _ in range(max(rounds, shape[0]))])
    return rows[: shape[0], : shape[1]]
