"""The operator table of Ascend: which call goes to a fused operator, and which to the definition.

Every method asks `rules` first; what a rule forbids runs the plain torch definition on the device, and `remarks` says
so at load. Training (gradients) always runs the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiefsee.errors import DeviceError
from tiefsee.layouts import find_layout
from tiefsee.ops import reference
from tiefsee.ops.ascend import attention, experts, hyper, indexer, linear, norms, rules
from tiefsee.ops.ascend.chip import AscendChip
from tiefsee.ops.ascend.device import chip_at
from tiefsee.ops.ascend.remarks import remarks_on
from tiefsee.ops.ascend.settle import Half, Settled, settle
from tiefsee.ops.table import Operators, published_format
from tiefsee.ops.view import CacheView
from tiefsee.ops.weight import AnyWeight, Weight, dense
from tiefsee.spec.model import ModelSpec, Router

# What npu_scatter_nd_update_ takes.
SCATTERED = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool)


def operators(device: torch.device) -> Operators:
    return AscendOperators(chip_at(device))


class AscendOperators(Operators):
    name = "ascend"
    layout = find_layout(attention.LAYOUT)

    def __init__(self, chip: AscendChip) -> None:
        self.chip = chip
        self._masks: dict[torch.device, Tensor] = {}

    def remarks(self, spec: ModelSpec, dtype: torch.dtype) -> tuple[str, ...]:
        return remarks_on(self.chip, spec, dtype)

    def resolve_format(self, format: str, spec: ModelSpec) -> tuple[str, str | None]:
        """FP8 and FP4 stay packed on a chip that has FP8; elsewhere they become INT8, or BF16 when asked."""
        if spec.quantisation is None or format not in ("auto", "keep", "fp8", "fp4"):
            return super().resolve_format(format, spec)
        published = published_format(spec)
        if self.chip.has_fp8 and format == "auto":
            columns = "128 columns, 32 beside FP4" if spec.quantisation.expert_format == "fp4" else "128 columns"
            return "keep", (
                f"{self.chip} keeps the weights as published ({published}): activations in BF16 or FP16 meet them in "
                f"FP8, one scale per token and {columns}; --format bf16 unpacks them"
            )
        if self.chip.has_fp8:
            return super().resolve_format(format, spec)
        if format != "auto":
            raise DeviceError(
                f"format {format!r} asks for {published}, and {self.chip} has no FP8; "
                "needed int8 or bf16 (or auto: int8)"
            )
        return "int8", (
            f"{self.chip} has no FP8: the weights are converted to INT8, one scale per row, and multiplied with INT8 "
            "activations, one scale per token; --format bf16 keeps them exact at twice the size"
        )

    def activation_format(self, weight_format: str, dtype: torch.dtype) -> str:
        codes = {"int8": "int8"}
        if self.chip.generation.has_block_products:
            codes |= {"fp8": "fp8", "fp4": "fp8"}
        if rules.needs_half(dtype) is None and weight_format in codes:
            return codes[weight_format]
        return super().activation_format(weight_format, dtype)

    def settle(self, network: nn.Module, dtype: torch.dtype) -> None:
        settle(network, self.chip.generation, dtype)

    @staticmethod
    def write_rows(rows_SC: Tensor, slots_T: Tensor, new_TC: Tensor) -> None:
        if rows_SC.dtype not in SCATTERED or not len(slots_T):
            Operators.write_rows(rows_SC, slots_T, new_TC)
            return
        torch.ops.npu.npu_scatter_nd_update_(rows_SC, slots_T.unsqueeze(1), new_TC)

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        chip = self.chip.generation
        return reference.linear(x, weight, bias) if _trains() else linear.linear(x, weight, bias, chip)

    def grouped_linear(self, x_TGI: Tensor, weight: AnyWeight) -> Tensor:
        chip = self.chip.generation
        return reference.grouped_linear(x_TGI, weight) if _trains() else linear.grouped_linear(x_TGI, weight, chip)

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return reference.rms_norm(x, weight, eps) if _trains() else norms.rms_norm(x, weight, eps)

    def swiglu(self, gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
        return reference.swiglu(gate, up, limit) if _trains() else norms.swiglu(gate, up, limit)

    def rotate_pairs(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return reference.rotate_pairs(x, cos, sin) if _trains() else norms.rotate(x, cos, sin, "interleave")

    def rotate_halves(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return reference.rotate_halves(x, cos, sin) if _trains() else norms.rotate(x, cos, sin, "half")

    def route(
        self, hidden_TD: Tensor, weight_ED: Tensor | Weight, bias_E: Tensor | None, router: Router,
        tokens_T: Tensor, experts_of_token: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        why = rules.gating(self.chip.generation, router, weight_ED.shape[0])
        if _trains() or why is not None:
            return super().route(hidden_TD, weight_ED, bias_E, router, tokens_T, experts_of_token)
        logits_TE = reference.linear(hidden_TD.float(), dense(weight_ED, torch.float32))
        return experts.route(logits_TE, bias_E, router, tokens_T, experts_of_token)

    def run_experts(
        self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
        share: tuple[int, int] | None = None,
    ) -> Tensor:  # fmt: skip
        chip, dtype = self.chip.generation, hidden_TD.dtype
        weights = [w for w in (w1, w2, w3) if isinstance(w, Weight)]
        reasons = [rules.packed_experts(chip, dtype, w.packing, w.shape) for w in weights]
        reasons.append(rules.grouped_matmul(dtype, w1.shape[0]))
        # FP4 meets FP8 in an order of memory that only `settle` makes.
        unsettled = any(w.packing.format == "fp4" and not isinstance(w, Settled | Half) for w in weights)
        if _trains() or unsettled or any(reasons):
            return super().run_experts(hidden_TD, experts_TK, weights_TK, w1, w2, w3, limit, share)
        return experts.run_experts(hidden_TD, experts_TK, weights_TK, w1, w2, w3, limit, share, chip)

    def latent_attention(
        self, query_nope_THN: Tensor, query_rope_THR: Tensor, wkv_b: AnyWeight, view: CacheView, layer: int,
        scale: float, value_dim: int, picks: list[Tensor | None] | None = None,
    ) -> Tensor:  # fmt: skip
        heads, rope = query_rope_THR.shape[1:]
        why = rules.attention(query_nope_THN.dtype, heads, wkv_b.shape[1], rope)
        if _trains() or why is not None:
            return reference.latent_attention(
                query_nope_THN, query_rope_THR, wkv_b, view, layer, scale, value_dim, picks
            )
        weight_HOC = dense(wkv_b, query_nope_THN.dtype).unflatten(0, (heads, -1))
        mask = self._mask(query_nope_THN.device)
        call = attention.LatentAttentionCall(
            query_nope_THN, query_rope_THR, weight_HOC, value_dim, view, layer, scale, mask
        )
        return call.run(picks)

    def pick_keys(
        self, query_TIJ: Tensor, weights_TI: Tensor, view: CacheView, layer: int, top_k: int
    ) -> list[Tensor | None]:
        def definition() -> list[Tensor | None]:
            return super(AscendOperators, self).pick_keys(query_TIJ, weights_TI, view, layer, top_k)

        heads, width = query_TIJ.shape[1:]
        why = rules.indexer(query_TIJ.dtype, heads, width, top_k)
        if _trains() or why is not None:
            return definition()
        return indexer.pick_keys(query_TIJ, weights_TI, view, layer, top_k, definition)

    def hyper_mix(
        self, streams_TXD: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, eps: float,
        norm_eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if _trains() or rules.hyper(self.chip.generation, streams_TXD.dtype, *streams_TXD.shape[1:]) is not None:
            return reference.hyper_mix(streams_TXD, fn, base, scale, iterations, eps, norm_eps)
        return hyper.mix(streams_TXD, fn, base, scale, iterations, eps, norm_eps)

    def hyper_join(self, streams_TXD: Tensor, output_TD: Tensor, post_TX: Tensor, comb_TXY: Tensor) -> Tensor:
        if _trains() or rules.hyper(self.chip.generation, streams_TXD.dtype, *streams_TXD.shape[1:]) is not None:
            return reference.hyper_join(streams_TXD, output_TD, post_TX, comb_TXY)
        return hyper.join(streams_TXD, output_TD, post_TX, comb_TXY)

    def _mask(self, device: torch.device) -> Tensor:
        if device not in self._masks:
            self._masks[device] = attention.causal_mask(device)
        return self._masks[device]


def _trains() -> bool:
    return torch.is_grad_enabled()
