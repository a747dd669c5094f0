"""A worker: one replica of a model, and how its ranks share the work."""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip
from tiefsee.plan.times.terms import uneven
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats, Shard, check_shard
from tiefsee.spec.model import MoE


@dataclass(frozen=True, eq=False)
class Worker:
    """One replica: `tp` ranks to each of `dp` attention groups; experts over `ep` ranks, each split by `moe_tp`;
    all of it `pp` times, one after the other, each with a part of the layers.

    `imbalance` is the load of the fullest expert rank over the mean's; None leaves it to `Efficiency.skew`.
    """

    spec: ModelSpec
    chip: Chip
    formats: Formats
    tp: int = 1
    dp: int = 1
    ep: int = 1
    moe_tp: int = 1
    pp: int = 1
    overlap: bool = False
    imbalance: float | None = None

    def __post_init__(self) -> None:
        if self.pp > len(self.spec.layers):
            raise ConfigError(f"pp = {self.pp} stages for {len(self.spec.layers)} layers; take at most one each")
        ranks = self.tp * self.dp
        if self.has_experts and self.ep * self.moe_tp != ranks:
            raise ConfigError(
                f"experts over ep {self.ep} x moe_tp {self.moe_tp} are {self.ep * self.moe_tp} ranks, attention over "
                f"tp {self.tp} x dp {self.dp} is {ranks}; they have to be the same ranks"
            )
        check_shard(self.spec, self.shard)

    @property
    def num_chips(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def has_experts(self) -> bool:
        return any(isinstance(layer.ffn, MoE) for layer in self.spec.layers)

    @property
    def shard(self) -> Shard:
        return Shard(self.tp, self.ep, self.moe_tp)

    @property
    def spread(self) -> float:
        """See `terms.uneven`; 0 where the imbalance is given."""
        moe = next((layer.ffn for layer in self.spec.layers if isinstance(layer.ffn, MoE)), None)
        return uneven(self.ep, moe.n_routed_experts) if moe is not None and self.imbalance is None else 0.0
