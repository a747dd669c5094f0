"""What each generation of Ascend has, beside the figures of the catalogue (tiefsee/hardware)."""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.errors import DeviceError
from tiefsee.hardware.catalogue import find_chip


@dataclass(frozen=True)
class Generation:
    """Operators that not every chip has; sources: the product tables of op-plugin's pages (docs/ascend.md)."""

    has_hyper_connections: bool  # npu_mhc_pre, npu_mhc_sinkhorn, npu_mhc_post
    has_sqrt_softplus: bool  # norm_type 2 of npu_moe_gating_top_k: V4's scores
    has_block_products: bool  # FP8 and FP4 with scales of blocks: modes G-B and mx of npu_quant_matmul
    has_gated_quant: bool  # npu_dequant_swiglu_quant with V4's clamp, over INT32 rows by expert
    orders_weights: bool  # INT8 weights are held in FRACTAL_NZ


A2_A3 = Generation(
    has_hyper_connections=False, has_sqrt_softplus=False, has_block_products=False, has_gated_quant=True,
    orders_weights=True,
)  # fmt: skip
A5 = Generation(
    has_hyper_connections=True, has_sqrt_softplus=True, has_block_products=True, has_gated_quant=False,
    orders_weights=False,
)  # fmt: skip

# Beginning of the name that CANN gives the chip (SoC), its entry in the catalogue, its generation. Longest first.
SOCS = (
    ("Ascend910_93", "ascend-910c-die", A2_A3),
    ("Ascend910B1", "ascend-910b1", A2_A3),
    ("Ascend910B2", "ascend-910b2", A2_A3),
    ("Ascend910B3", "ascend-910b3", A2_A3),
    ("Ascend910B4", "ascend-910b4", A2_A3),
    ("Ascend950DT", "ascend-950dt", A5),
    ("Ascend950", "ascend-950pr", A5),
)


@dataclass(frozen=True)
class AscendChip:
    """One chip, by the name that CANN gives it."""

    soc: str
    generation: Generation
    has_fp8: bool

    def __str__(self) -> str:
        return self.soc


def chip_of(soc: str) -> AscendChip:
    """The chip of a SoC name. DeviceError for one that tiefsee does not know: nothing is assumed of it."""
    for beginning, entry, generation in SOCS:
        if soc.startswith(beginning):
            return AscendChip(soc, generation, find_chip(entry).has("fp8"))
    raise DeviceError(
        f"the card is a {soc!r}; tiefsee knows {', '.join(beginning for beginning, _, _ in SOCS)}. "
        "A new chip is a line in tiefsee/ops/ascend/chip.py and an entry in the catalogue"
    )
