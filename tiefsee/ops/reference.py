"""Every operator of the family in plain torch: the definition that each faster backend is tested against.

Runs unchanged on cpu and cuda, in prefill, decode and training; differentiable. Names end in shapes:

    T tokens of the step, packed   S keys a query sees   D hidden   C latent or shared key/value width
    H heads   N non-rope head dim   R rope dim   V value head dim   E experts   K experts per token
    F expert hidden   I indexer heads   J indexer dim   X residual streams   U query tile

Sources: DeepSeek-V2 (arXiv 2405.04434) for latent attention, V3 (2412.19437) for gating, V3.2-Exp's
report for the indexer, V4's report sections 2.1 to 2.3 for hash routing, mHC and compressed attention.
A weight is a tensor or a packed `Weight`; packed ones are dequantised here, expert by expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tiefsee.ops.view import CacheView
from tiefsee.ops.weight import AnyWeight, Weight, dense
from tiefsee.spec.model import Router

EachExpert = Callable[[Tensor, Tensor, Tensor | Weight, Tensor | Weight, Tensor | Weight, float | None], Tensor]

# Scores of one query tile stay below this, so that attention over a long cache does not grow with the chunk.
SCORE_TILE_VALUES = 1 << 24


# ------------------------------------------------------------------------------- linear and norms


def linear(x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
    """x [.., I] times weight [O, I] transposed."""
    return F.linear(x, dense(weight, x.dtype), bias)


def grouped_linear(x_TGI: Tensor, weight: AnyWeight) -> Tensor:
    """Block-diagonal projection: group g of x [T, G, I] by rows g of weight [G * O, I] -> [T, G * O]."""
    groups, width = x_TGI.shape[1:]
    weight_GOI = dense(weight, x_TGI.dtype).view(groups, -1, width)
    return torch.einsum("tgi,goi->tgo", x_TGI, weight_GOI).flatten(1)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dim, in float32, cast once at the end."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide if weight is None else wide * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Mean and variance norm of the V3.2 indexer key."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
    """silu(gate) * up; V4 clamps the gate from above and the linear part from both sides."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


# -------------------------------------------------------------------------------------------- RoPE


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on neighbours (0, 1), (2, 3), ..: MLA of all models and everything in V4.

    x [.., R], cos and sin [.., R / 2] broadcast to it. With -sin it turns back.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on (i, i + R / 2): the indexer of V3.2, and only that. x [.., R], cos and sin [.., R / 2]."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


# ----------------------------------------------------------------------------------------- experts


def router_scores(hidden_TD: Tensor, weight_ED: AnyWeight, scoring_func: str) -> Tensor:
    """Affinity of each token with each expert, [T, E] in float32 whatever the model's dtype."""
    logits_TE = F.linear(hidden_TD.float(), dense(weight_ED, torch.float32))
    if scoring_func == "softmax":
        return logits_TE.softmax(-1)
    if scoring_func == "sigmoid":
        return logits_TE.sigmoid()
    return F.softplus(logits_TE).sqrt()


def top_k_stable(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest along the last dim; of equal ones the lowest index first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def select_experts(scores_TE: Tensor, bias_E: Tensor | None, router: Router) -> Tensor:
    """The experts of each token, [T, K]. The bias moves the choice, never the weight (V3, section 2.1.2).

    With groups, only experts of the best `topk_group` groups stand for choice: a group counts by its
    best expert (V2) or by the sum of its two best (V3).
    """
    choice_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E.float()
    if router.n_group > 1:
        grouped = choice_TE.unflatten(-1, (router.n_group, -1))
        best = 2 if router.selection == "noaux_tc" else 1
        rank = grouped.topk(min(best, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(rank, dtype=torch.bool).scatter(1, top_k_stable(rank, router.topk_group), True)
        # V2 sets the other groups to 0, V3 to -inf; scores of a softmax are positive, so one rule serves.
        choice_TE = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    return top_k_stable(choice_TE, router.num_experts_per_tok)


def expert_weights(scores_TE: Tensor, experts_TK: Tensor, router: Router) -> Tensor:
    """Weights of the chosen experts, [T, K] in float32."""
    weights_TK = scores_TE.gather(1, experts_TK)
    if router.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * router.routed_scaling_factor


def run_experts(
    hidden_TD: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
    w1: Tensor | Weight,
    w2: Tensor | Weight,
    w3: Tensor | Weight,
    limit: float | None,
    share: tuple[int, int] | None = None,
    each_expert: EachExpert | None = None,
) -> Tensor:
    """Routed experts: each token through its K experts, weighted and summed in the order of its picks.

    w1, w3 [E, F, D] and w2 [E, D, F]; `each_expert` is the backend's own. Tokens are sorted by expert, so
    each expert is touched once and the sum of a token does not depend on what else is in the batch.
    `share` = (first, number of all experts) says that the stacks hold only some, from the first on; picks of others
    add nothing: they are another rank's.
    """
    num_experts, num_picks = w1.shape[0], experts_TK.shape[1]
    picks_N = experts_TK.flatten()
    if share is not None:
        own_N = (picks_N >= share[0]) & (picks_N < share[0] + num_experts)
        picks_N = torch.where(own_N, picks_N - share[0], num_experts)  # sorted to the end
    order = picks_N.argsort(stable=True)
    counts_E = torch.bincount(picks_N, minlength=num_experts)[:num_experts]
    num_own = len(order) if share is None else int(counts_E.sum())
    output_ND = hidden_TD.new_zeros(len(order), hidden_TD.shape[1])
    if num_own == len(order):
        output_ND = (each_expert or expert_loop)(hidden_TD[order // num_picks], counts_E, w1, w2, w3, limit)
    elif num_own:
        own_ND = hidden_TD[order[:num_own] // num_picks]
        output_ND[:num_own] = (each_expert or expert_loop)(own_ND, counts_E, w1, w2, w3, limit)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    picked_TKD = output_ND[back].unflatten(0, (-1, num_picks))
    return torch.einsum("tkd,tk->td", picked_TKD.float(), weights_TK).to(hidden_TD.dtype)


def expert_loop(
    sorted_ND: Tensor, counts_E: Tensor, w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight,
    limit: float | None, linear: Callable[[Tensor, AnyWeight], Tensor] = linear,
) -> Tensor:  # fmt: skip
    """SwiGLU of each of the N = T * K rows through its expert; rows are sorted by expert, `counts` of each."""
    # unbind, not w[expert]: the gradient of a stack is then put together once, not once an expert.
    gates, downs, ups = w1.unbind(), w2.unbind(), w3.unbind()
    outputs, first = [], 0
    for expert, count in enumerate(counts_E.tolist()):
        if count == 0:
            continue
        x = sorted_ND[first : first + count]
        hidden = swiglu(linear(x, gates[expert]), linear(x, ups[expert]), limit)
        outputs.append(linear(hidden, downs[expert]))
        first += count
    return torch.cat(outputs)


# ------------------------------------------------------------------------- latent attention (MLA)


def latent_attention(
    query_nope_THN: Tensor,
    query_rope_THR: Tensor,
    wkv_b: AnyWeight,
    view: CacheView,
    layer: int,
    scale: float,
    value_dim: int,
    picks: list[Tensor | None] | None = None,
) -> Tensor:
    """Attention over cached latents (stream "latent", rows C + R), causal, per segment -> [T, H, V].

    Two equal forms (DeepSeek-V2, section 2.1.2). Absorbed: the query is taken into latent space and keys
    are read as they are stored, one row for all heads. Expanded: keys and values are built for each head,
    which pays off when many queries share them. `picks` (V3.2) narrows each query to its chosen keys.
    """
    heads, nope = query_nope_THN.shape[1:]
    weight_HOC = dense(wkv_b, query_nope_THN.dtype).unflatten(0, (heads, -1))
    key_HNC, value_HVC = weight_HOC.split((nope, value_dim), dim=1)
    rank = weight_HOC.shape[-1]
    absorbs = [s.num_tokens < break_even(*weight_HOC.shape[1:]) for s in view.segments]
    if all(absorbs):
        # Decode: the heads' matrices are applied to all requests at once, only the keys differ.
        query_THC = absorb_query(query_nope_THN, query_rope_THR, key_HNC)
        return per_head(value_HVC, attend_segments(query_THC, view, layer, scale, rank, picks))
    outputs = []
    segments = _latent_segments(view, layer, query_nope_THN.dtype, picks)
    for (t, r, p), absorb in zip(segments, absorbs, strict=True):
        if absorb:
            query_THC = absorb_query(query_nope_THN[t], query_rope_THR[t], key_HNC)
            outputs.append(per_head(value_HVC, attend_latent(query_THC, r, scale, p, rank)))
        else:
            outputs.append(_expanded(query_nope_THN[t], query_rope_THR[t], r, key_HNC, value_HVC, scale, p))
    return torch.cat(outputs)


def break_even(both: int, rank: int) -> float:
    """Queries per segment from which expanding the keys costs fewer FLOPs: about 170 for V3.

    Per key, expanding costs C * (N + V) once and then N + R + V a query; absorbed costs 2 * C + R a query.
    `both` is N + V, `rank` is C.
    """
    return rank * both / max(2 * rank - both, 1)


def absorb_query(query_nope_THN: Tensor, query_rope_THR: Tensor, key_HNC: Tensor) -> Tensor:
    """Queries in latent space, [T, H, C + R]: what the rows of the cache are compared with as they are."""
    return torch.cat((torch.einsum("thn,hnc->thc", query_nope_THN, key_HNC), query_rope_THR), dim=-1)


def attend_segments(
    query_THC: Tensor, view: CacheView, layer: int, scale: float, rank: int, picks: list[Tensor | None] | None
) -> Tensor:
    """The latents that absorbed queries attend to, weighted: [T, H, C], for all segments."""
    segments = _latent_segments(view, layer, query_THC.dtype, picks)
    return torch.cat([attend_latent(query_THC[t], r, scale, p, rank) for t, r, p in segments])


def _latent_segments(
    view: CacheView, layer: int, dtype: torch.dtype, picks: list[Tensor | None] | None
) -> list[tuple[slice, Tensor, Tensor | None]]:
    """Tokens, cached rows and chosen keys of each segment."""
    chosen = picks or [None] * len(view.segments)
    return [
        (slice(s.first, s.last), view.history("latent", layer, i, s.end).to(dtype), chosen[i])
        for i, s in enumerate(view.segments)
    ]


def attend_latent(query_THC: Tensor, rows_SC: Tensor, scale: float, pick: Tensor | None, rank: int) -> Tensor:
    """The latents that the queries of one segment attend to, weighted: [T, H, C]; C, `rank`, is the part of a row that
    is a value too."""
    if pick is not None and len(query_THC) == 1:
        rows_SC, pick = rows_SC[pick[0]], None
    first = len(rows_SC) - len(query_THC)
    outputs = []
    for tile in _query_tiles(query_THC, len(rows_SC)):
        tile_UHC = query_THC[tile]
        scores_UHS = (tile_UHC.flatten(0, 1) @ rows_SC.T).view(*tile_UHC.shape[:2], -1).float() * scale
        if len(query_THC) > 1:
            hidden_US = _hidden(tile, first, len(rows_SC), pick, rows_SC)
            scores_UHS = scores_UHS.masked_fill(hidden_US.unsqueeze(1), -torch.inf)
        probs_UHS = scores_UHS.softmax(-1).to(rows_SC.dtype)
        outputs.append((probs_UHS.flatten(0, 1) @ rows_SC[:, :rank]).view(*probs_UHS.shape[:2], rank))
    return torch.cat(outputs)


def per_head(weight_HOI: Tensor, x_THI: Tensor) -> Tensor:
    """x [T, H, I] through each head's own matrix [O, I] -> [T, H, O]. The weight stays on the left, as it is
    stored: the other way round the CPU copies it first (0.6 against 0.1 ms for V2-Lite's value heads)."""
    return (weight_HOI @ x_THI.permute(1, 2, 0)).permute(2, 0, 1)


def _expanded(
    query_nope_THN: Tensor, query_rope_THR: Tensor, rows_SC: Tensor, key_HNC: Tensor, value_HVC: Tensor,
    scale: float, pick: Tensor | None,
) -> Tensor:  # fmt: skip
    heads, _, rank = key_HNC.shape
    latent_SC, rope_SR = rows_SC.split((rank, rows_SC.shape[-1] - rank), dim=-1)
    key_HSK = torch.cat(
        (torch.einsum("sc,hnc->hsn", latent_SC, key_HNC), rope_SR.expand(heads, *rope_SR.shape)), dim=-1
    )
    value_HSV = torch.einsum("sc,hvc->hsv", latent_SC, value_HVC)
    query_HTK = torch.cat((query_nope_THN, query_rope_THR), dim=-1).transpose(0, 1)
    first = len(rows_SC) - query_HTK.shape[1]
    outputs = []
    for tile in _query_tiles(query_nope_THN, len(rows_SC)):
        scores_HUS = (query_HTK[:, tile] @ key_HSK.transpose(1, 2)).float() * scale
        scores_HUS = scores_HUS.masked_fill(_hidden(tile, first, len(rows_SC), pick, rows_SC), -torch.inf)
        outputs.append((scores_HUS.softmax(-1).to(rows_SC.dtype) @ value_HSV).transpose(0, 1))
    return torch.cat(outputs)


def _query_tiles(query_TH: Tensor, num_keys: int) -> list[slice]:
    """Slices of the queries whose scores (tile * H * S) stay below SCORE_TILE_VALUES."""
    num_queries, heads = query_TH.shape[:2]
    size = max(1, SCORE_TILE_VALUES // max(1, heads * num_keys))
    return [slice(i, min(i + size, num_queries)) for i in range(0, num_queries, size)]


def _hidden(tile: slice, first: int, num_keys: int, pick: Tensor | None, like: Tensor) -> Tensor:
    """True where a query of the tile must not look: [U, S]. Query i of the step sits at key first + i."""
    query_U1 = torch.arange(tile.start, tile.stop, device=like.device).unsqueeze(1) + first
    hidden_US = torch.arange(num_keys, device=like.device) > query_U1
    if pick is None:
        return hidden_US
    return hidden_US | torch.ones_like(hidden_US).scatter(1, pick[tile], False)


# ---------------------------------------------------------------------------------------- indexers


def index_scores(query_TIJ: Tensor, weights_TI: Tensor, keys_SJ: Tensor) -> Tensor:
    """Sum over heads of weight * relu(query . key), [T, S] in float32 (V3.2-Exp, equation 1).

    The weights carry the scales I**-0.5 * J**-0.5. Heads are summed tile by tile.
    """
    scores = []
    for tile in _query_tiles(query_TIJ, len(keys_SJ)):
        products = (query_TIJ[tile].float().flatten(0, 1) @ keys_SJ.float().T).relu()
        scores.append(
            torch.einsum("ti,tis->ts", weights_TI[tile].float(), products.view(*query_TIJ[tile].shape[:2], -1))
        )
    return torch.cat(scores)


def select_entries(scores_TS: Tensor, num_visible_T: Tensor, top_k: int) -> Tensor | None:
    """The best `top_k` of each query's first `num_visible` entries, [T, K]; None when all are seen.

    A query that sees fewer gets its invisible ones too, in the last places: the attention hides them.
    Of equal scores the lowest index wins.
    """
    if scores_TS.shape[1] <= top_k:
        return None
    entry_S = torch.arange(scores_TS.shape[1], device=scores_TS.device)
    return top_k_stable(scores_TS.masked_fill(entry_S >= num_visible_T.unsqueeze(1), -torch.inf), top_k)


def pick_keys(
    query_TIJ: Tensor, weights_TI: Tensor, view: CacheView, layer: int, top_k: int,
    score: Callable[[Tensor, Tensor, Tensor], Tensor] = index_scores,
    select: Callable[[Tensor, Tensor, int], Tensor | None] = select_entries,
) -> list[Tensor | None]:  # fmt: skip
    """The keys (stream "index") that each query attends to, one [T, K] per segment as `select_entries` gives them;
    None where a segment sees no more than `top_k`."""
    picks: list[Tensor | None] = []
    for index, segment in enumerate(view.segments):
        keys_SJ = view.history("index", layer, index, segment.end)
        if len(keys_SJ) <= top_k:
            picks.append(None)
            continue
        tokens = slice(segment.first, segment.last)
        scores_TS = score(query_TIJ[tokens], weights_TI[tokens], keys_SJ)
        first = segment.start + 1 - segment.origin
        visible_T = torch.arange(first, first + segment.num_tokens, device=keys_SJ.device)
        picks.append(select(scores_TS, visible_T, top_k))
    return picks


# ------------------------------------------------------------------------ compressed attention (V4)


def compress(rows_S2C: Tensor, ape_MC: Tensor, ratio: int, overlap: bool, has_previous: bool) -> Tensor:
    """Entries of whole windows of `ratio` rows: a softmax-gated mean per channel -> [windows, C].

    Rows hold kv and gate. With overlap each is two series wide: the first feeds the entry of the next
    window, the second that of its own (V4, equations 9 to 12), and `has_previous` says that the first
    window given is only there to be looked back at. Without (equations 20 to 23) a window stands alone.
    """
    windows_WM2C = rows_S2C.float().unflatten(0, (-1, ratio))
    kv, gate = windows_WM2C.unbind(2)
    gate = gate + ape_MC.float()
    if overlap:
        (kv_before, kv), (gate_before, gate) = kv.chunk(2, -1), gate.chunk(2, -1)
        if has_previous:
            kv, gate = kv[1:], gate[1:]
            kv_before, gate_before = kv_before[:-1], gate_before[:-1]
        else:
            # Nothing before the first window: a gate of -inf has weight 0.
            kv_before = F.pad(kv_before[:-1], (0, 0, 0, 0, 1, 0))
            gate_before = F.pad(gate_before[:-1], (0, 0, 0, 0, 1, 0), value=-torch.inf)
        kv, gate = torch.cat((kv_before, kv), 1), torch.cat((gate_before, gate), 1)
    return (kv * gate.softmax(1)).sum(1)


def window_attention(
    query_THC: Tensor,
    rows_TC: Tensor,
    view: CacheView,
    layer: int,
    window: int,
    sink_H: Tensor,
    scale: float,
    entries: list[Tensor] | None = None,
    ratio: int = 0,
    picks: list[Tensor | None] | None = None,
) -> Tensor:
    """V4 attention: the last `window` rows and, with a compressor, the entries closed before each query.

    Rows serve as key and value of all heads. `sink_H` is a logit without a value (V4, section 2.3.3).
    Entry i is visible from position (i + 1) * ratio - 1 on. Returns [T, H, C].
    """
    outputs = []
    for index, segment in enumerate(view.segments):
        own_TC = rows_TC[segment.first : segment.last]
        before = view.recent("window", layer, index, window - 1)
        rows_SC = own_TC if before is None else torch.cat((before.to(own_TC.dtype), own_TC))
        outputs += _window_segment(
            query_THC[segment.first : segment.last], rows_SC, segment.start, window, sink_H, scale,
            None if entries is None else entries[index], ratio, None if picks is None else picks[index],
        )  # fmt: skip
    return torch.cat(outputs)


def _window_segment(
    query_THC: Tensor, rows_SC: Tensor, start: int, window: int, sink_H: Tensor, scale: float,
    entries_EC: Tensor | None, ratio: int, pick_TK: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    num_before = len(rows_SC) - len(query_THC)
    if entries_EC is not None and len(query_THC) == 1:
        # One query: take the entries that it sees instead of hiding the others.
        visible = (start + 1) // ratio
        entries_EC = entries_EC[:visible] if pick_TK is None else entries_EC[pick_TK[0][pick_TK[0] < visible]]
        pick_TK = None
    num_entries = 0 if entries_EC is None else len(entries_EC)
    outputs = []
    for tile in _query_tiles(query_THC, num_entries + 2 * window):
        low, high = max(0, tile.start + num_before - window + 1), tile.stop + num_before
        query_U1 = torch.arange(tile.start, tile.stop, device=rows_SC.device).unsqueeze(1)
        key_S = torch.arange(low, high, device=rows_SC.device) - num_before
        keys_SC, hidden_US = rows_SC[low:high], (key_S > query_U1) | (key_S <= query_U1 - window)
        if entries_EC is not None and num_entries:
            entry_S = torch.arange(num_entries, device=rows_SC.device)
            unseen_US = (entry_S >= (query_U1 + start + 1) // ratio) & (len(query_THC) > 1)
            if pick_TK is not None:
                unseen_US = unseen_US | torch.ones_like(unseen_US).scatter(1, pick_TK[tile], False)
            keys_SC = torch.cat((keys_SC, entries_EC.to(keys_SC.dtype)))
            hidden_US = torch.cat((hidden_US, unseen_US), 1)
        outputs.append(_attend_with_sink(query_THC[tile], keys_SC, hidden_US, sink_H, scale))
    return outputs


def _attend_with_sink(query_UHC: Tensor, keys_SC: Tensor, hidden_US: Tensor, sink_H: Tensor, scale: float) -> Tensor:
    u, h, _ = query_UHC.shape
    scores_UHS = (query_UHC.flatten(0, 1) @ keys_SC.T).view(u, h, -1).float() * scale
    scores_UHS = scores_UHS.masked_fill(hidden_US.unsqueeze(1), -torch.inf)
    sink_UH1 = sink_H.float().view(1, h, 1).expand(u, h, 1)
    probs_UHS = torch.cat((scores_UHS, sink_UH1), -1).softmax(-1)[..., :-1].to(keys_SC.dtype)
    return (probs_UHS.flatten(0, 1) @ keys_SC).view(u, h, -1)


# --------------------------------------------------------------------------- hyper-connections (V4)


def hyper_mix(
    streams_TXD: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of one hyper-connection and its collapsed input (V4, section 2.2; mHC, Xie et al.).

    Returns the block's input [T, D], `post` [T, X] that spreads its output over the streams, and `comb`
    [T, X, X] that mixes the streams: doubly stochastic by Sinkhorn-Knopp, so that nothing blows up.
    """
    x = streams_TXD.shape[1]
    mixes = F.linear(rms_norm(streams_TXD.flatten(1).float(), None, norm_eps), fn.float())
    pre, post, comb = mixes.split((x, x, x * x), dim=-1)
    pre_base, post_base, comb_base = base.float().split((x, x, x * x))
    scale = scale.float()
    pre = torch.sigmoid(pre * scale[0] + pre_base) + eps
    post = 2 * torch.sigmoid(post * scale[1] + post_base)
    comb = (comb * scale[2] + comb_base).unflatten(-1, (x, x)).softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return torch.einsum("tx,txd->td", pre, streams_TXD.float()).to(streams_TXD.dtype), post, comb


def hyper_join(streams_TXD: Tensor, output_TD: Tensor, post_TX: Tensor, comb_TXY: Tensor) -> Tensor:
    """The streams after a block: comb transposed times streams, plus post times the block's output."""
    mixed = torch.einsum("txy,txd->tyd", comb_TXY, streams_TXD.float())
    return (mixed + post_TX.unsqueeze(-1) * output_TD.float().unsqueeze(1)).to(streams_TXD.dtype)


def hyper_head(streams_TXD: Tensor, fn: Tensor, base: Tensor, scale: Tensor, eps: float, norm_eps: float) -> Tensor:
    """Collapse of the streams before the final norm -> [T, D]."""
    mixes = F.linear(rms_norm(streams_TXD.flatten(1).float(), None, norm_eps), fn.float())
    pre = torch.sigmoid(mixes * scale.float() + base.float()) + eps
    return torch.einsum("tx,txd->td", pre, streams_TXD.float()).to(streams_TXD.dtype)
