"""One step on the device: the scheduler's lists become tensors, the network runs, logits come back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tiefsee.engine.cache import PagedView, StreamCache
from tiefsee.model import Network
from tiefsee.ops.view import Segment
from tiefsee.schedule.batch import Batch, Entry


@dataclass(frozen=True)
class StepResult:
    """Of one step: logits [n, W] per entry (n = 0 where none are wanted), and the states that MTP reads."""

    logits: tuple[Tensor, ...]
    draft_TXD: Tensor
    segments: tuple[Segment, ...]


class Runner:
    """Network and cache of one device. Holds no request."""

    def __init__(self, network: Network, cache: StreamCache) -> None:
        self.network, self.cache = network, cache

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """Carry out the scheduler's orders, then compute every entry's tokens in one pass."""
        for operation in batch.before:
            self.cache.carry_out(operation)
        device = self.cache.device
        segments = tuple(pack([(len(e.tokens), e.start) for e in batch.entries]))
        tokens_T = torch.tensor([t for e in batch.entries for t in e.tokens], device=device)
        positions_T = torch.tensor([p for s in segments for p in range(s.start, s.end)], device=device)
        view = PagedView(
            self.cache, segments, [e.block_table for e in batch.entries], [ring_of(e) for e in batch.entries]
        )
        hidden = self.network(tokens_T, positions_T, view)
        counts = [num_logit_rows(e) for e in batch.entries]
        rows = [t for s, n in zip(segments, counts, strict=True) for t in range(s.last - n, s.last)]
        logits = self.network.logits(hidden.final_TD[torch.tensor(rows, device=device, dtype=torch.int64)])
        return StepResult(logits.split(counts), hidden.draft_TXD, segments)


def pack(spans: list[tuple[int, int]]) -> list[Segment]:
    """Segments of (number of tokens, start position), one after the other."""
    segments, first = [], 0
    for count, start in spans:
        segments.append(Segment(first, first + count, start))
        first += count
    return segments


def num_logit_rows(entry: Entry) -> int:
    """Positions of an entry whose logits are wanted: its last, those of its drafts, or all of a prompt."""
    if entry.request.needs_prompt_logprobs and entry.start < entry.request.num_prompt_tokens:
        return len(entry.tokens)
    return 1 + entry.num_drafts if entry.samples else 0


def ring_of(entry: Entry) -> int:
    """The entry's ring; models without state streams have none, and no stream asks for it."""
    return -1 if entry.ring is None else entry.ring
