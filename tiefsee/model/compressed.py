"""Attention of V4: a sliding window of shared key/value rows, and entries that stand for many tokens.

V4's report, section 2.3: CSA compresses 4 tokens with overlap and picks entries by an indexer, HCA
compresses 128 and reads all. Shapes: see ops/reference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiefsee.model.layers import Linear, RMSNorm
from tiefsee.model.step import Step
from tiefsee.ops import Operators
from tiefsee.spec.model import CompressedAttention
from tiefsee.spec.split import Split


class CompressedAttentionLayer(nn.Module):
    """Heads may be split over ranks by whole groups; window, compressors and indexer are whole on each."""

    def __init__(
        self, ops: Operators, spec: CompressedAttention, hidden_size: int, layer: int, eps: float, split: Split
    ) -> None:
        super().__init__()
        self.ops, self.spec, self.layer, self.eps = ops, spec, layer, eps
        heads, self.num_groups, width = len(split.heads(spec)), len(split.groups(spec)), spec.head_dim
        self.attn_sink = nn.Parameter(torch.zeros(heads))
        self.wq_a = Linear(ops, hidden_size, spec.q_lora_rank)
        self.q_norm = RMSNorm(ops, spec.q_lora_rank, eps)
        self.wq_b = Linear(ops, spec.q_lora_rank, heads * width)
        self.wkv = Linear(ops, hidden_size, width)
        self.kv_norm = RMSNorm(ops, width, eps)
        self.wo_a = Linear(ops, heads * width // self.num_groups, self.num_groups * spec.o_lora_rank)
        self.wo_b = Linear(ops, self.num_groups * spec.o_lora_rank, hidden_size)
        if spec.ratio:
            self.compressor = Compressor(ops, spec, width, hidden_size, layer, eps, "compressed", "rows")
        if spec.indexer is not None:
            self.indexer = EntryIndexer(ops, spec, hidden_size, layer, eps)

    def forward(self, hidden_TD: Tensor, step: Step) -> Tensor:
        spec, ops = self.spec, self.ops
        cos, sin = (table.unsqueeze(1) for table in step.rope(spec.rope))
        query_latent_TQ = self.q_norm(self.wq_a(hidden_TD))
        query_THC = self.wq_b(query_latent_TQ).unflatten(-1, (-1, spec.head_dim))
        query_THC = rotate_tail(ops, ops.rms_norm(query_THC, None, self.eps), cos, sin)
        rows_TC = rotate_tail(ops, self.kv_norm(self.wkv(hidden_TD)), cos.squeeze(1), sin.squeeze(1))
        entries = self.compressor(hidden_TD, step) if spec.ratio else None
        picks = self.indexer(hidden_TD, query_latent_TQ, step) if spec.indexer is not None else None
        output_THC = ops.window_attention(
            query_THC, rows_TC, step.view, self.layer, spec.sliding_window, self.attn_sink, spec.softmax_scale,
            entries, spec.ratio, picks,
        )  # fmt: skip
        step.view.remember("window", self.layer, rows_TC)
        # Rows are values too, so values come out rotated: turning back by the query's own angle leaves
        # the distance between the two.
        output_TGI = rotate_tail(ops, output_THC, cos, -sin).flatten(1).unflatten(1, (self.num_groups, -1))
        return self.wo_b(ops.grouped_linear(output_TGI, self.wo_a.weight))


class Compressor(nn.Module):
    """Closes windows of `ratio` tokens into one entry each, and keeps the rows of the open one."""

    def __init__(
        self, ops: Operators, spec: CompressedAttention, width: int, hidden_size: int, layer: int, eps: float,
        entries: str, rows: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ops, self.spec, self.layer = ops, spec, layer
        self.entry_stream, self.row_stream = f"{entries}_{spec.ratio}", f"{rows}_{spec.ratio}"
        series = 2 if spec.overlap else 1
        self.ape = nn.Parameter(torch.zeros(spec.ratio, series * width))
        self.wkv = Linear(ops, hidden_size, series * width)
        self.wgate = Linear(ops, hidden_size, series * width)
        self.norm = RMSNorm(ops, width, eps)

    def forward(self, hidden_TD: Tensor, step: Step) -> list[Tensor]:
        """All entries that are closed at the end of the step, one [entries, C] per segment."""
        rows_T2C = torch.stack((self.wkv(hidden_TD), self.wgate(hidden_TD)), dim=1)
        entries = []
        for index, segment in enumerate(step.view.segments):
            self._close(rows_T2C[segment.first : segment.last], index, step)
            entries.append(step.view.history(self.entry_stream, self.layer, index, segment.end // self.spec.ratio))
        step.view.remember(self.row_stream, self.layer, rows_T2C)
        return entries

    def _close(self, rows_S2C: Tensor, index: int, step: Step) -> None:
        """Append the entries of one segment whose windows end in this step.

        |-- window before (overlap) --|-- first open window: rows before | rows of the step --|-- ...
        """
        ratio, segment = self.spec.ratio, step.view.segments[index]
        first = segment.start // ratio
        has_previous = self.spec.overlap and first > 0
        num_before = segment.start - (first - has_previous) * ratio
        if num_before:
            before = step.view.recent(self.row_stream, self.layer, index, num_before)
            assert before is not None, "a window that is open began before the step"
            rows_S2C = torch.cat((before.to(rows_S2C.dtype), rows_S2C))
        rows_S2C = rows_S2C[: len(rows_S2C) // ratio * ratio]
        entries_EC = rows_S2C.new_zeros(0, self.norm.weight.shape[0])
        if len(rows_S2C) > has_previous * ratio:
            pooled = self.ops.compress(rows_S2C, self.ape, ratio, self.spec.overlap, has_previous)
            positions = (torch.arange(len(pooled), device=pooled.device) + first) * ratio
            cos, sin = step.rotary.at(self.spec.rope, positions)
            entries_EC = rotate_tail(self.ops, self.norm(pooled.to(rows_S2C.dtype)), cos, sin)
        step.view.append(self.entry_stream, self.layer, index, first, entries_EC)


class EntryIndexer(nn.Module):
    """The lightning indexer over compressed entries, with a small compressor for its own keys."""

    def __init__(self, ops: Operators, spec: CompressedAttention, hidden_size: int, layer: int, eps: float) -> None:
        super().__init__()
        assert spec.indexer is not None
        self.ops, self.spec, self.indexer = ops, spec, spec.indexer
        heads, width = spec.indexer.index_n_heads, spec.indexer.index_head_dim
        self.wq_b = Linear(ops, spec.q_lora_rank, heads * width)
        self.weights_proj = Linear(ops, hidden_size, heads)
        self.compressor = Compressor(ops, spec, width, hidden_size, layer, eps, "index", "index_rows")

    def forward(self, hidden_TD: Tensor, query_latent_TQ: Tensor, step: Step) -> list[Tensor | None]:
        """The entries of each query, one [T, K] per segment; None where there are no more than K."""
        cos, sin = (table.unsqueeze(1) for table in step.rope(self.spec.rope))
        query_TIJ = self.wq_b(query_latent_TQ).unflatten(-1, (self.indexer.index_n_heads, -1))
        query_TIJ = rotate_tail(self.ops, query_TIJ, cos, sin)
        scale = (self.indexer.index_n_heads * self.indexer.index_head_dim) ** -0.5
        weights_TI = self.weights_proj(hidden_TD).float() * scale
        picks: list[Tensor | None] = []
        for segment, keys_SJ in zip(step.view.segments, self.compressor(hidden_TD, step), strict=True):
            if len(keys_SJ) <= self.indexer.index_topk:
                picks.append(None)
                continue
            tokens = slice(segment.first, segment.last)
            scores_TS = self.ops.index_scores(query_TIJ[tokens], weights_TI[tokens], keys_SJ)
            visible_T = (step.positions_T[tokens] + 1) // self.spec.ratio
            picks.append(self.ops.select_entries(scores_TS, visible_T, self.indexer.index_topk))
        return picks


def rotate_tail(ops: Operators, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the last 2 * cos.shape[-1] channels; the others pass."""
    rest, rope = x.split((x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    return torch.cat((rest, ops.rotate_pairs(rope, cos, sin)), dim=-1)
