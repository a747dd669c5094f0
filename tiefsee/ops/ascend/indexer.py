"""The lightning indexer of V3.2 by npu_lightning_indexer, over the pages of its keys."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from tiefsee.ops.ascend.attention import RIGHT_DOWN_CAUSAL, is_paged, joined, pages_of, table_of
from tiefsee.ops.view import CacheView

Definition = Callable[[], list[Tensor | None]]


def pick_keys(
    query_TIJ: Tensor, weights_TI: Tensor, view: CacheView, layer: int, top_k: int, definition: Definition
) -> list[Tensor | None]:
    """As the definition: one [T, K] per segment, None where it sees no more than `top_k` keys.

    All segments of a step go one way: a step of the MTP layer, whose segments begin late, is left to the definition.
    """
    segments = view.segments
    sparse = [i for i, s in enumerate(segments) if s.end - s.origin > top_k]
    if not sparse:
        return [None] * len(segments)
    if not is_paged(view) or any(s.origin for s in segments):
        return definition()
    parts = [slice(segments[i].first, segments[i].last) for i in sparse]
    counts, device = [segments[i].num_tokens for i in sparse], query_TIJ.device
    (keys,) = pages_of(view, "index", layer)
    found_T1K, _ = torch.ops.npu.npu_lightning_indexer(
        joined([query_TIJ[p] for p in parts]).contiguous(),
        keys.unsqueeze(2),  # [pages, rows, 1 head, J]
        joined([weights_TI[p] for p in parts]).float().contiguous(),
        actual_seq_lengths_query=torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=device),
        actual_seq_lengths_key=torch.tensor([segments[i].end for i in sparse], dtype=torch.int32, device=device),
        block_table=table_of(view, "index", sparse),
        layout_query="TND",
        layout_key="PA_BSND",
        sparse_count=top_k,
        sparse_mode=RIGHT_DOWN_CAUSAL,
    )
    picks: list[Tensor | None] = [None] * len(segments)
    for i, found in zip(sparse, _fill(found_T1K.squeeze(1)).split(counts), strict=True):
        picks[i] = found
    return picks


def _fill(picks_TK: Tensor) -> Tensor:
    """A query that sees v < K keys gets -1 in the places from v on: place k then stands for key k, which the query
    does not see either, so that every entry is a key, as in the definition."""
    place_K = torch.arange(picks_TK.shape[1], device=picks_TK.device)
    picks_TK = picks_TK.long()
    return torch.where(picks_TK < 0, place_K, picks_TK)
