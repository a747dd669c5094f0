"""Which optimizer moves which parameter: Muon the matrices of the blocks, AdamW everything else.

As in DeepSeek-V4: embedding, head, norms, biases and what steers (gates, sinks, hyper-connections) are not
matrices that map a space to a space, and orthogonal updates make no sense for them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from tiefsee.errors import CheckpointError
from tiefsee.train.muon import Muon

ADAM_BETAS = (0.9, 0.95)  # DeepSeek-V3 (arXiv 2412.19437), section 4.2
# Parts of a parameter's dotted name that keep it with AdamW although it is a matrix.
ADAM_PARTS = {"embed", "head", "gate", "ape"}
ADAM_PREFIX = "hc_"  # the mixing of hyper-connections: a few rows that each have a meaning of their own

Method = Literal["muon", "adamw"]


class Optimizer:
    """Muon and AdamW as one: one learning rate, one state. Made by `build_optimizer`."""

    def __init__(self, names: list[str], muon: Muon, adam: torch.optim.AdamW) -> None:
        self.names, self.muon, self.adam = names, muon, adam

    def set_learning_rate(self, rate: float) -> None:
        self.muon.learning_rate = rate
        for group in self.adam.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        self.muon.step()
        self.adam.step()

    def zero_grad(self) -> None:
        for parameter in self.muon.parameters:
            parameter.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if the state belongs to other parameters."""
        if state["names"] != self.names:
            odd = sorted(set(state["names"]) ^ set(self.names))
            raise CheckpointError(
                f"the saved state is of other parameters ({', '.join(odd[:5]) or 'another order'}); "
                "it needs the model and method of that run; resume with those or start a new folder"
            )
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def build_optimizer(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    method: Method = "muon",
    muon_dtype: torch.dtype = torch.bfloat16,
) -> Optimizer:
    """The optimizer of all parameters that take gradients; with `method` "adamw" none goes to Muon.

    Vectors and the embedding are not decayed: a norm's gain is meant to stay near 1, and a token that has
    not been seen for long should not fade.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"muon": [], "decayed": [], "kept": []}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if method == "muon" and is_matrix(name, parameter):
            groups["muon"].append((name, parameter))
        elif parameter.ndim >= 2 and "embed" not in name.split("."):
            groups["decayed"].append((name, parameter))
        else:
            groups["kept"].append((name, parameter))
    matrices, decayed, kept = ([p for _, p in group] for group in groups.values())
    adam_groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(
        adam_groups,
        lr=learning_rate,
        betas=ADAM_BETAS,
        weight_decay=weight_decay,
        fused=True,  # one pass over memory instead of a dozen
    )
    muon = Muon(matrices, learning_rate, weight_decay, dtype=muon_dtype)
    return Optimizer([name for group in groups.values() for name, _ in group], muon, adam)


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Does Muon take it? A matrix or a stack of them, unless its name says that it steers."""
    parts = name.split(".")
    steers = bool(ADAM_PARTS & set(parts)) or any(part.startswith(ADAM_PREFIX) for part in parts)
    return parameter.ndim in (2, 3) and not steers
