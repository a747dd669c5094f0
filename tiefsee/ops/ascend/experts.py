"""Which experts, and through them: gating, sorting rows by expert, grouped products, weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.ops.ascend.linear import is_int8
from tiefsee.ops.ascend.norms import swiglu
from tiefsee.ops.weight import AnyWeight, Weight
from tiefsee.spec.model import Router

SCORES = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2}


def route(
    logits_TE: Tensor, bias_E: Tensor | None, router: Router, tokens_T: Tensor, experts_of_token: Tensor | None
) -> tuple[Tensor, Tensor]:
    """npu_moe_gating_top_k: scores, groups, choice and weights in one; float32 logits, experts [T, K] int64."""
    by_hash = experts_of_token is not None
    groups = 1 if by_hash else router.n_group
    weights_TK, experts_TK, _ = torch.ops.npu.npu_moe_gating_top_k(
        logits_TE,
        router.num_experts_per_tok,
        bias=None if bias_E is None else bias_E.float(),
        input_ids=tokens_T if by_hash else None,
        tid2eid=experts_of_token,
        k_group=groups if groups == 1 else router.topk_group,
        group_count=groups,
        group_select_mode=1 if router.selection == "noaux_tc" else 0,
        norm_type=SCORES[router.scoring_func],
        routed_scaling_factor=router.routed_scaling_factor,
        eps=1e-20,
    )
    return experts_TK.long(), weights_TK


def run_experts(
    hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor,
    w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
    share: tuple[int, int] | None,
) -> Tensor:  # fmt: skip
    """Rows sorted by expert, three grouped products, and the weighted sum of each token's rows.

    The sum's weights have the rows' dtype (npu_moe_finalize_routing takes no other): in BF16 they are rounded.
    """
    npu = torch.ops.npu
    first, num_experts = share or (0, w1.shape[0])
    sorted_ND, places_N, counts_E, _ = npu.npu_moe_init_routing_v2(
        hidden_TD,
        experts_TK.int(),
        active_num=experts_TK.numel(),
        expert_num=num_experts,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[first, first + w1.shape[0]],
        quant_mode=-1,
    )
    rows = _Rows(sorted_ND, w1)
    hidden_NF = swiglu(rows.times(w1, counts_E), rows.times(w3, counts_E), limit)
    output_ND = _Rows(hidden_NF, w2).times(w2, counts_E)
    if share is not None:
        # Picks of others have no row: their place is -1, and the rows behind the last product hold anything.
        is_row_N = torch.arange(len(output_ND), device=output_ND.device) < counts_E.sum()
        output_ND = torch.where(is_row_N.unsqueeze(1), output_ND, 0)
        weights_TK = torch.where(places_N.view_as(weights_TK) >= 0, weights_TK, 0)
        places_N = places_N.clamp(min=0)
    summed: Tensor = npu.npu_moe_finalize_routing(
        output_ND, None, None, None, weights_TK.to(output_ND.dtype), places_N, None, drop_pad_mode=2
    )
    return summed


class _Rows:
    """Rows sorted by expert, quantised once where weights are INT8."""

    def __init__(self, x_NI: Tensor, weight: AnyWeight) -> None:
        self.dtype, self.values, self.scale = x_NI.dtype, x_NI, None
        if is_int8(weight):
            self.values, self.scale = torch.ops.npu.npu_dynamic_quant(x_NI)

    def times(self, weight_EOI: Tensor | Weight, counts_E: Tensor) -> Tensor:
        """npu_grouped_matmul with each expert's weight transposed, as it is stored: [N, O]."""
        codes = weight_EOI.data if isinstance(weight_EOI, Weight) else weight_EOI
        scales = {}
        if self.scale is not None:
            assert isinstance(weight_EOI, Weight)
            # BF16 results want BF16 scales, FP16 ones float32. BF16 holds the scales that `formats.pack_int8` makes.
            scale = weight_EOI.scale.to(torch.bfloat16) if self.dtype == torch.bfloat16 else weight_EOI.scale
            scales = {"scale": [scale], "per_token_scale": [self.scale], "output_dtype": self.dtype}
        out: Tensor = torch.ops.npu.npu_grouped_matmul(
            [self.values], [codes.transpose(1, 2)], group_list=counts_E, split_item=3, group_type=0,
            group_list_type=1, **scales,
        )[0]  # fmt: skip
        return out
