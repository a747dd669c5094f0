"""The definition with the roundings that fused operators have: what BF16 on Ascend is compared with.

Between two operators everything is rounded to BF16, as in the definition. Within one, Ascend's operators keep float32
where the definition's single steps round:

    gated activation     rounded once, at the end
    attention            scores stay float32; powers are rounded before they meet the values, their sum is not
    sum over experts     the weights are rounded to BF16
    packed weights       activations become codes too, INT8 per token or FP8 by blocks; sums of INT8 are exact
    INT8 experts         nothing is rounded to BF16 between the first products and the second's codes
    few queries          16 and fewer are absorbed (the definition: fewer than it pays off for)
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.ops import Operators, formats, reference
from tiefsee.ops.ascend.chip import Generation
from tiefsee.ops.cpu import CpuOperators
from tiefsee.ops.view import CacheView
from tiefsee.ops.weight import AnyWeight, PackedSlice, Weight, dense

MOST_ABSORBED = 16


class RoundedOperators(Operators):
    """`settled`: experts as after a load; otherwise gate and up are products by themselves, rounded to BF16.
    `multiplies_fp8`: FP8 and FP4 weights meet FP8 rows, as on Ascend 950."""

    name = "rounded"
    free_bytes = staticmethod(CpuOperators.free_bytes)

    def __init__(self, *, settled: bool = True, multiplies_fp8: bool = False) -> None:
        self.settled, self.multiplies_fp8 = settled, multiplies_fp8

    @classmethod
    def of(cls, chip: Generation) -> RoundedOperators:
        return cls(settled=chip.has_gated_quant, multiplies_fp8=chip.has_block_products)

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        out = self._product(x, weight)
        if out is None:
            return reference.linear(x, weight, bias)
        return out.to(x.dtype) if bias is None else out.to(x.dtype) + bias

    def grouped_linear(self, x_TGI: Tensor, weight: AnyWeight) -> Tensor:
        if isinstance(weight, Tensor):
            return reference.grouped_linear(x_TGI, weight)
        groups = x_TGI.shape[1]
        parts = (t.unflatten(0, (groups, -1)).unbind() for t in (weight.data, weight.scale))
        slices = [PackedSlice(data, scale, weight.packing) for data, scale in zip(*parts, strict=True)]
        return torch.cat([self.linear(x_TGI[:, g].contiguous(), part) for g, part in enumerate(slices)], -1)

    def _product(self, x: Tensor, weight: AnyWeight) -> Tensor | None:
        """In float32, of rows as codes; None where the weight is unpacked."""
        if isinstance(weight, Tensor) or x.dtype != torch.bfloat16:
            return None
        if weight.packing.format == "int8":
            step = x.float().abs().amax(-1, keepdim=True) / 127
            codes = (x.float() / torch.where(step == 0, 1.0, step)).round()
            return (codes.double() @ weight.data.double().T).float() * weight.scale * step
        if not self.multiplies_fp8:
            return None
        width = 128 if weight.packing.format == "fp8" and weight.packing.block[0] == 128 else 32
        return as_fp8(x.float(), width, powers=width == 32) @ weight.dequantise(torch.float32).T

    def swiglu(self, gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
        return reference.swiglu(gate.float(), up.float(), limit).to(gate.dtype)

    def run_experts(
        self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
        share: tuple[int, int] | None = None,
    ) -> Tensor:  # fmt: skip
        weights_TK = weights_TK.to(hidden_TD.dtype).float()
        return super().run_experts(hidden_TD, experts_TK, weights_TK, w1, w2, w3, limit, share)

    def each_expert(self, sorted_ND, counts_E, w1, w2, w3, limit):
        # The fused activation takes 64s of gate and up together.
        in_int8 = isinstance(w1, Weight) and w1.packing.format == "int8" and w1.shape[1] % 32 == 0
        in_int8 = in_int8 and self.settled and sorted_ND.dtype == torch.bfloat16
        outputs, first = [], 0
        for gate, down, up, count in zip(w1.unbind(), w2.unbind(), w3.unbind(), counts_E.tolist(), strict=True):
            x = sorted_ND[first : first + count]
            if in_int8:
                hidden = reference.swiglu(self._product(x, gate), self._product(x, up), limit)
                step = hidden.abs().amax(-1, keepdim=True) / 127
                codes = (hidden / torch.where(step == 0, 1.0, step)).round()
                outputs.append(((codes.double() @ down.data.double().T).float() * down.scale * step).to(x.dtype))
            else:
                outputs.append(self.linear(self.swiglu(self.linear(x, gate), self.linear(x, up), limit), down))
            first += count
        return torch.cat(outputs)

    def latent_attention(
        self, query_nope_THN: Tensor, query_rope_THR: Tensor, wkv_b: AnyWeight, view: CacheView, layer: int,
        scale: float, value_dim: int, picks: list[Tensor | None] | None = None,
    ) -> Tensor:  # fmt: skip
        heads, nope = query_nope_THN.shape[1:]
        key_HNC, value_HVC = dense(wkv_b, query_nope_THN.dtype).unflatten(0, (heads, -1)).split((nope, value_dim), 1)
        outputs = []
        for index, segment in enumerate(view.segments):
            rows_SC = view.history("latent", layer, index, segment.end)
            latent_SC, rope_SR = rows_SC.split((key_HNC.shape[-1], query_rope_THR.shape[-1]), -1)
            tokens = slice(segment.first, segment.last)
            pick = None if picks is None else picks[index]
            nope_THN, rope_THR = query_nope_THN[tokens], query_rope_THR[tokens]
            hidden_TS = _hidden(segment.num_tokens, len(rows_SC), pick)
            if pick is not None or segment.num_tokens <= MOST_ABSORBED:
                query_THC = torch.einsum("thn,hnc->thc", nope_THN, key_HNC)
                scores = torch.einsum("thc,sc->ths", query_THC.float(), latent_SC.float())
                scores += torch.einsum("thr,sr->ths", rope_THR.float(), rope_SR.float())
                found = _weigh(scores * scale, hidden_TS, latent_SC.unsqueeze(1).expand(-1, heads, -1))
                outputs.append(torch.einsum("thc,hvc->thv", found, value_HVC))
            else:
                key_SHN = torch.einsum("sc,hnc->shn", latent_SC, key_HNC)
                scores = torch.einsum("thn,shn->ths", nope_THN.float(), key_SHN.float())
                scores += torch.einsum("thr,sr->ths", rope_THR.float(), rope_SR.float())
                outputs.append(_weigh(scores * scale, hidden_TS, torch.einsum("sc,hvc->shv", latent_SC, value_HVC)))
        return torch.cat(outputs)


def as_fp8(wide: Tensor, width: int, *, powers: bool) -> Tensor:
    """E4M3 codes times the scales of their blocks of `width` columns, in float32."""
    columns = wide.shape[-1]
    flat = wide.reshape(-1, columns)
    codes, scale = formats.pack_fp8(flat, (1, width), ue8m0=powers)
    return formats.unpack_fp8(codes, scale, (1, width), torch.float32).view(wide.shape)


def _weigh(scores_THS: Tensor, hidden_TS: Tensor, values_SHV: Tensor) -> Tensor:
    scores_THS = scores_THS.masked_fill(hidden_TS.unsqueeze(1), -torch.inf)
    powers = torch.exp(scores_THS - scores_THS.max(-1, keepdim=True).values)
    weighed = torch.einsum("ths,shv->thv", powers.to(values_SHV.dtype).float(), values_SHV.float())
    return (weighed / powers.sum(-1, keepdim=True)).to(values_SHV.dtype)


def _hidden(num_queries: int, num_keys: int, pick: Tensor | None) -> Tensor:
    query_T1 = torch.arange(num_queries).unsqueeze(1) + num_keys - num_queries
    hidden_TS = torch.arange(num_keys) > query_T1
    if pick is not None:
        hidden_TS = hidden_TS | torch.ones_like(hidden_TS).scatter(1, pick, False)
    return hidden_TS
