"""Which experts, and through them: gating, sorting rows by expert, grouped products, weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.ops.ascend import packed, rules
from tiefsee.ops.ascend.chip import Generation
from tiefsee.ops.ascend.norms import swiglu, swiglu_of
from tiefsee.ops.ascend.settle import Half, both_of
from tiefsee.ops.weight import Weight
from tiefsee.spec.model import Router

SCORES = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2}
QUANTISE_ROWS = 1  # quant_mode of npu_moe_init_routing_v2: INT8, one scale per row


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
    share: tuple[int, int] | None, chip: Generation,
) -> Tensor:  # fmt: skip
    """Rows sorted by expert, their products, and the weighted sum of each token's rows.

    The sum's weights have the rows' dtype (npu_moe_finalize_routing takes no other): in BF16 they are rounded.
    """
    npu = torch.ops.npu
    first, num_experts = share or (0, w1.shape[0])
    quantised = isinstance(w1, Half) and w1.packing.format == "int8" and rules.gated_quant(chip, w1.shape[1]) is None
    sorted_ND, places_N, counts_E, scale_N = npu.npu_moe_init_routing_v2(
        hidden_TD,
        experts_TK.int(),
        active_num=experts_TK.numel(),
        expert_num=num_experts,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[first, first + w1.shape[0]],
        quant_mode=QUANTISE_ROWS if quantised else -1,
    )
    if quantised:
        assert isinstance(w1, Half)
        assert isinstance(w2, Weight)
        rows_NF = _gated_in_int8(packed.Rows(sorted_ND, scale_N), w1.both, counts_E, limit)
        output_ND = packed.grouped_times(rows_NF, w2, "int8", counts_E, hidden_TD.dtype)
    else:
        hidden_NF = _gated(sorted_ND, counts_E, w1, w3, limit)
        output_ND = _times(hidden_NF, counts_E, w2)
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


def _gated_in_int8(rows: packed.Rows, both: Weight, counts_E: Tensor, limit: float | None) -> packed.Rows:
    """Gate and up as whole numbers by one product; scales, activation and codes of the next rows by one operator:
    nothing is rounded to BF16 between the two products."""
    sums_N2F = packed.grouped_matmul(rows.codes, both.data, counts_E, torch.int32)
    clamp = {} if limit is None else {"swiglu_mode": 2, "clamp_limit": limit, "glu_alpha": 1.0, "glu_bias": 0.0}
    codes, scale = torch.ops.npu.npu_dequant_swiglu_quant(
        sums_N2F, weight_scale=both.scale, activation_scale=rows.scale.unsqueeze(1), group_index=counts_E,
        activate_left=True, quant_mode=1, **clamp,
    )  # fmt: skip
    return packed.Rows(codes, scale)


def _gated(x_NI: Tensor, counts_E: Tensor, w1: Tensor | Weight, w3: Tensor | Weight, limit: float | None) -> Tensor:
    """The activation of gate and up: of one product where w1 and w3 lie side by side, else of two."""
    if isinstance(w1, Half):
        return swiglu_of(_times(x_NI, counts_E, w1.both), limit)
    if isinstance(w1, Tensor) and isinstance(w3, Tensor) and (both := both_of(w1, w3)) is not None:
        return swiglu_of(_times(x_NI, counts_E, both), limit)
    return swiglu(_times(x_NI, counts_E, w1), _times(x_NI, counts_E, w3), limit)


def _times(x_NI: Tensor, counts_E: Tensor, weight: Tensor | Weight) -> Tensor:
    """Each expert's rows by its weight, which is transposed as it is stored: [N, O]."""
    if isinstance(weight, Tensor):
        return packed.grouped_matmul(x_NI, weight, counts_E, x_NI.dtype)
    way = packed.way_of(weight.packing)
    return packed.grouped_times(packed.quantise(x_NI, way), weight, way, counts_E, x_NI.dtype)
