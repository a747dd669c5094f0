"""Latent attention (MLA) by npu_fused_infer_attention_score_v2 and npu_sparse_flash_attention.

Segments of a step go one of these ways:

    picks (V3.2)             absorbed, chosen rows of the pages        npu_sparse_flash_attention
    up to 16 queries         absorbed, all rows of the pages           npu_fused_infer_attention_score_v2, D = 512
    .. that begin late       absorbed, rows gathered first (MTP: pages hold rows from `origin` on)
    more queries             expanded, keys and values for each head   npu_fused_infer_attention_score_v2, D = 128
    what neither takes       absorbed, the definition: picks of an MTP layer, heads of other widths

All in layout TND: packed tokens, ends of the requests as running sums on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tiefsee.ops import reference
from tiefsee.ops.ascend import rules
from tiefsee.ops.view import CacheView, PagedHistory, Segment

RIGHT_DOWN_CAUSAL = 3  # sparse_mode: query i of a request sees its keys up to i + keys - queries
MASK_WIDTH = 2048  # of the mask that this mode wants, whatever the lengths
LAYOUT = "apart"


class LatentAttentionCall:
    """One layer's attention of one step: weights taken apart, and the ways above."""

    def __init__(
        self, query_nope_THN: Tensor, query_rope_THR: Tensor, weight_HOC: Tensor, value_dim: int, view: CacheView,
        layer: int, scale: float, mask: Tensor,
    ) -> None:  # fmt: skip
        self.query_nope_THN, self.query_rope_THR, self.weight_HOC = query_nope_THN, query_rope_THR, weight_HOC
        self.key_HNC, self.value_HVC = weight_HOC.split((query_nope_THN.shape[2], value_dim), dim=1)
        self.view, self.layer, self.mask = view, layer, mask
        self.options = {
            "num_query_heads": query_nope_THN.shape[1], "softmax_scale": scale, "input_layout": "TND",
            "atten_mask": mask, "sparse_mode": RIGHT_DOWN_CAUSAL,
        }  # fmt: skip
        self.scale = scale

    def run(self, picks: Sequence[Tensor | None] | None) -> Tensor:
        """[T, H, V]."""
        segments = self.view.segments
        chosen = picks or [None] * len(segments)
        ways: dict[str, list[int]] = {}
        for index, (segment, pick) in enumerate(zip(segments, chosen, strict=True)):
            ways.setdefault(self._way(segment, pick), []).append(index)
        parts: dict[int, Tensor] = {}
        for way, indexes in ways.items():
            if way == "expanded":
                outputs = [self._expanded(i) for i in indexes]
            else:
                outputs = self._absorbed(way, indexes, [chosen[i] for i in indexes])
            parts.update(zip(indexes, outputs, strict=True))
        return parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in range(len(segments))])

    def _way(self, segment: Segment, pick: Tensor | None) -> str:
        has_pages = is_paged(self.view) and segment.origin == 0
        if pick is not None:
            return "picked" if has_pages else "reference"
        if segment.num_tokens > rules.MOST_ABSORBED_QUERIES:
            expands = rules.expanded_attention(self.key_HNC.shape[1], self.value_HVC.shape[1]) is None
            return "expanded" if expands else "reference"
        return "pages" if has_pages else "gathered"

    def _absorbed(self, way: str, indexes: list[int], picks: list[Tensor | None]) -> list[Tensor]:
        """Segments that are compared with the latents as they are stored, in one call."""
        segments = [self.view.segments[i] for i in indexes]
        nope, rope = (_rows_of(q, segments) for q in (self.query_nope_THN, self.query_rope_THR))
        query_THC = torch.einsum("thn,hnc->thc", nope, self.key_HNC).contiguous()
        counts = [s.num_tokens for s in segments]
        if way == "reference":
            latent_THC = self._by_definition(query_THC, rope, indexes, counts, picks)
        elif way == "picked":
            chosen = joined([p for p in picks if p is not None])
            latent_THC = self._picked(query_THC, rope.contiguous(), indexes, counts, chosen)
        else:
            latent_THC = self._fused(way, query_THC, rope.contiguous(), indexes, counts)
        return list(reference.per_head(self.value_HVC, latent_THC).split(counts))

    def _fused(self, way: str, query_THC: Tensor, rope_THR: Tensor, indexes: list[int], counts: list[int]) -> Tensor:
        ends = list(accumulate(counts))
        if way == "pages":
            latent, rotated = pages_of(self.view, "latent", self.layer)
            key, key_rope = latent.unsqueeze(1), rotated.unsqueeze(1)  # [pages, 1 head, rows, width]
            lengths = [self.view.segments[i].end for i in indexes]
            pages = {"block_table": table_of(self.view, "latent", indexes), "block_size": latent.shape[1]}
        else:
            rows = [self._rows(i) for i in indexes]
            key, key_rope = (joined(part).unsqueeze(1) for part in zip(*rows, strict=True))
            lengths = list(accumulate(len(latent) for latent, _ in rows))
            pages = {}
        out: Tensor = torch.ops.npu.npu_fused_infer_attention_score_v2(
            query_THC, key, key, query_rope=rope_THR, key_rope=key_rope, actual_seq_qlen=ends,
            actual_seq_kvlen=lengths, num_key_value_heads=1, **self.options, **pages,
        )[0]  # fmt: skip
        return out

    def _picked(
        self, query_THC: Tensor, rope_THR: Tensor, indexes: list[int], counts: list[int], picks_TK: Tensor
    ) -> Tensor:
        """Picks beyond what a query sees stand last in its row; the causal mode hides them."""
        latent, rotated = pages_of(self.view, "latent", self.layer)
        device = query_THC.device
        ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=device)
        lengths = torch.tensor([self.view.segments[i].end for i in indexes], dtype=torch.int32, device=device)
        key = latent.unsqueeze(2)  # [pages, rows, 1 head, width]
        out: Tensor = torch.ops.npu.npu_sparse_flash_attention(
            query_THC, key, key, picks_TK.int().unsqueeze(1).contiguous(), self.scale,
            block_table=table_of(self.view, "latent", indexes), actual_seq_lengths_query=ends,
            actual_seq_lengths_kv=lengths, query_rope=rope_THR, key_rope=rotated.unsqueeze(2), sparse_block_size=1,
            layout_query="TND", layout_kv="PA_BSND", sparse_mode=RIGHT_DOWN_CAUSAL, attention_mode=2,
        )[0]  # fmt: skip
        return out

    def _by_definition(
        self, query_THC: Tensor, rope_THR: Tensor, indexes: list[int], counts: list[int], picks: list[Tensor | None]
    ) -> Tensor:  # fmt: skip
        """What no fused operator takes."""
        outputs = []
        for i, query, pick in zip(indexes, torch.cat((query_THC, rope_THR), -1).split(counts), picks, strict=True):
            rows = self.view.history("latent", self.layer, i, self.view.segments[i].end)
            outputs.append(reference.attend_latent(query, rows, self.scale, pick, self.value_HVC.shape[-1]))
        return torch.cat(outputs)

    def _expanded(self, index: int) -> Tensor:
        """Keys and values of one segment for every head: [T, H, V]."""
        segment, heads = self.view.segments[index], len(self.weight_HOC)
        latent_SC, rope_SR = self._rows(index)
        both_SHO = reference.linear(latent_SC, self.weight_HOC.flatten(0, 1)).unflatten(1, (heads, -1))
        widths = (self.key_HNC.shape[1], self.value_HVC.shape[1])
        key_SHN, value_SHV = (x.contiguous() for x in both_SHO.split(widths, 2))
        key_rope = rope_SR.unsqueeze(1).expand(-1, heads, -1).contiguous()
        nope, rope = (_rows_of(q, [segment]).contiguous() for q in (self.query_nope_THN, self.query_rope_THR))
        out: Tensor = torch.ops.npu.npu_fused_infer_attention_score_v2(
            nope, key_SHN, value_SHV, query_rope=rope, key_rope=key_rope, actual_seq_qlen=[segment.num_tokens],
            actual_seq_kvlen=[len(latent_SC)], num_key_value_heads=heads, **self.options,
        )[0]  # fmt: skip
        return out

    def _rows(self, index: int) -> tuple[Tensor, Tensor]:
        """Latents and turned keys that a segment sees, [S, C] and [S, R], each contiguous."""
        segment = self.view.segments[index]
        if not is_paged(self.view):
            rows_SC = self.view.history("latent", self.layer, index, segment.end)
            rank = self.key_HNC.shape[-1]
            return rows_SC[:, :rank].contiguous(), rows_SC[:, rank:].contiguous()
        planes = pages_of(self.view, "latent", self.layer)
        pages = table_of(self.view, "latent", [index])[0, : -(-segment.end // planes[0].shape[1])]
        latent, rotated = (plane[pages].flatten(0, 1)[segment.origin : segment.end] for plane in planes)
        return latent, rotated


def causal_mask(device: torch.device) -> Tensor:
    """What RIGHT_DOWN_CAUSAL wants beside it: 1 above the diagonal."""
    return torch.ones(MASK_WIDTH, MASK_WIDTH, dtype=torch.int8, device=device).triu(1)


def is_paged(view: CacheView) -> bool:
    """Whether a fused operator may read the pages by itself."""
    return isinstance(view, PagedHistory) and view.layout.name == LAYOUT


def pages_of(view: CacheView, stream: str, layer: int) -> tuple[Tensor, ...]:
    assert isinstance(view, PagedHistory)
    return view.pages(stream, layer)


def table_of(view: CacheView, stream: str, indexes: list[int]) -> Tensor:
    """Pages of some of the segments, [B, M] int32."""
    assert isinstance(view, PagedHistory)
    table = view.page_table(stream).int()
    return table if len(indexes) == len(table) else table[torch.tensor(indexes, device=table.device)]


def _rows_of(x_T: Tensor, segments: Sequence[Segment]) -> Tensor:
    return joined([x_T[s.first : s.last] for s in segments])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
