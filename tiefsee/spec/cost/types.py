"""What an operator costs: floating-point operations and bytes, before any chip is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tiefsee.errors import ConfigError

# matmul: dense products; experts: grouped products; attention: scores and values; indexer: scores of the
# lightning indexer; vector: everything element by element.
Kind = Literal["matmul", "experts", "attention", "indexer", "vector"]

# Bytes of one value, scales included: FP8 and INT8 one byte and a float32 per 128 x 128 or per row (nothing
# to speak of), FP4 half a byte and a one-byte scale per 32 (MX) or 16 (NV).
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5 + 1 / 32}


@dataclass(frozen=True, slots=True)
class Cost:
    """One execution of an operator on one rank.

    `flops` count 2 per multiply-add. `weight_bytes` are read; `cache_bytes` are read of the KV cache (what is
    written is small and counted with the activations); `activation_bytes` are read and written.
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0
    activation_bytes: float = 0.0

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.weight_bytes + other.weight_bytes, self.cache_bytes + other.cache_bytes,
            self.activation_bytes + other.activation_bytes,
        )  # fmt: skip

    def __mul__(self, factor: float) -> Cost:
        return Cost(
            self.flops * factor, self.weight_bytes * factor, self.cache_bytes * factor, self.activation_bytes * factor
        )


@dataclass(frozen=True, slots=True)
class Op:
    """An operator, how often a step runs it (layers of a kind are counted, not repeated), and its cost each time.

    `format` is the number format that it multiplies in.
    """

    name: str
    kind: Kind
    format: str
    count: int
    cost: Cost


@dataclass(frozen=True)
class Formats:
    """Number formats: of dense products, of the experts' weights, of activations between operators, of the cache."""

    linear: str = "bf16"
    experts: str = "bf16"
    activations: str = "bf16"
    cache: str = "bf16"
    attention: str = "bf16"

    def __post_init__(self) -> None:
        for name in (self.linear, self.experts, self.activations, self.cache, self.attention):
            if name not in BYTES:
                raise ConfigError(f"number format is {name!r}; needed is one of {', '.join(BYTES)}")


@dataclass(frozen=True)
class Shard:
    """How one layer's work is split: attention over `tp` ranks, experts over `ep` ranks and each over `moe_tp`,
    a sequence over `cp`. Data parallelism is in the work: a rank's own tokens."""

    tp: int = 1
    ep: int = 1
    moe_tp: int = 1
    cp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "ep", "moe_tp", "cp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; needed is 1 or more")


WHOLE = Shard()


@dataclass(frozen=True)
class Work:
    """One step of one attention group (a TP group, or one data-parallel rank).

    num_tokens      tokens that are computed
    num_requests    requests that they belong to
    context         cached tokens that stand before a request's new ones, in the mean
    decode          whether MLA runs absorbed (a few new tokens against a long cache) or expanded
    expert_tokens   tokens that reach the experts from all groups together; None: this group's alone
    num_logits      rows of the head; None: one per request
    """

    num_tokens: float
    num_requests: float = 1.0
    context: float = 0.0
    decode: bool = False
    expert_tokens: float | None = None
    num_logits: float | None = None

    @property
    def seen(self) -> float:
        """Cached and new tokens that a query sees, in the mean: causal, so half of its own request's new ones."""
        new = self.num_tokens / max(self.num_requests, 1e-9)
        return self.context + (new + 1) / 2

    @property
    def total_context(self) -> float:
        """Cached tokens of all requests, new ones included: what attention reads."""
        return self.num_requests * self.context + self.num_tokens
