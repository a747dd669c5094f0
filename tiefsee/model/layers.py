"""The small parts: parameter holders, norms, the dense feed-forward and hyper-connections.

Modules own parameters under the names of `spec.tensors`; what they compute is in `ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiefsee.ops import Operators
from tiefsee.spec.model import HyperConnections


class Linear(nn.Module):
    """weight [O, I], plain or packed (`ops.weight.Weight`), and perhaps a bias."""

    def __init__(self, ops: Operators, num_in: int, num_out: int, bias: bool = False) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, ops: Operators, width: int, eps: float) -> None:
        super().__init__()
        self.ops, self.eps = ops, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Norm of the V3.2 indexer key; its eps is a constant of the published code."""

    eps = 1e-6

    def __init__(self, ops: Operators, width: int) -> None:
        super().__init__()
        self.ops = ops
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x): dense layers and shared experts."""

    def __init__(self, ops: Operators, hidden_size: int, intermediate_size: int, limit: float | None) -> None:
        super().__init__()
        self.ops, self.limit = ops, limit
        self.w1 = Linear(ops, hidden_size, intermediate_size)
        self.w2 = Linear(ops, intermediate_size, hidden_size)
        self.w3 = Linear(ops, hidden_size, intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ops.swiglu(self.w1(x), self.w3(x), self.limit))


Mix = tuple[Tensor, Tensor]


class Residual:
    """The plain residual: one stream, each block adds to it."""

    def enter(self, streams: Tensor) -> tuple[Tensor, Mix | None]:
        """The block's input, and what `leave` needs to join its output."""
        return streams, None

    def leave(self, streams: Tensor, output: Tensor, mix: Mix | None) -> Tensor:
        return streams + output


class HyperConnection(Residual):
    """X residual streams around one block of a layer; parameters hc_<site>_{fn,base,scale} live on the layer."""

    def __init__(self, ops: Operators, layer: nn.Module, site: str, hyper: HyperConnections, hidden: int, eps: float):
        x = hyper.hc_mult
        self._ops, self._layer, self._site, self._hyper, self._eps = ops, layer, site, hyper, eps
        register_hyper(layer, f"hc_{site}", (2 + x) * x, 3, x * hidden)

    def enter(self, streams: Tensor) -> tuple[Tensor, Mix | None]:
        fn, base, scale = hyper_parameters(self._layer, f"hc_{self._site}")
        collapsed, post, comb = self._ops.hyper_mix(
            streams, fn, base, scale, self._hyper.hc_sinkhorn_iters, self._hyper.hc_eps, self._eps
        )
        return collapsed, (post, comb)

    def leave(self, streams: Tensor, output: Tensor, mix: Mix | None) -> Tensor:
        assert mix is not None
        return self._ops.hyper_join(streams, output, *mix)


def register_hyper(module: nn.Module, prefix: str, outputs: int, num_scales: int, width: int) -> None:
    module.register_parameter(f"{prefix}_fn", nn.Parameter(torch.empty(outputs, width)))
    module.register_parameter(f"{prefix}_base", nn.Parameter(torch.zeros(outputs)))
    module.register_parameter(f"{prefix}_scale", nn.Parameter(torch.ones(num_scales)))


def hyper_parameters(module: nn.Module, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        getattr(module, f"{prefix}_fn"),
        getattr(module, f"{prefix}_base"),
        getattr(module, f"{prefix}_scale"),
    )
