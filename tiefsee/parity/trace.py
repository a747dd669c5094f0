"""Where two runs part: of every position a sketch of what every layer gives, and of what an MTP layer is given.

A sketch is a row times SKETCH random directions, always the same: how far two rows are apart shows in their sketches
(Johnson and Lindenstrauss), in 64 bytes where V3's row has 28,672. So all layers and all positions are looked at,
for 61 layers and 1,000 tokens in 12 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tiefsee.model import Network
from tiefsee.parity.measures import row_errors

SKETCH = 16
INPUT = " input"
# Point ("layers.3.attn", "mtp.0.hnorm input") -> prompt -> sketch of each position [T, SKETCH], nan for none.
Sketches = dict[str, dict[int, Tensor]]
# Of a pass: (prompt, first position, number of tokens) per segment.
Spans = Sequence[tuple[int, int, int]]


class Trace:
    """Sketches of one run, in the order of the network."""

    def __init__(self, network: Network) -> None:
        self.points = frozenset(_points(network))
        self._parts: dict[str, dict[int, list[tuple[int, Tensor]]]] = {}

    def note(self, point: str, rows: Tensor, spans: Spans) -> None:
        """Rows [T, ..] of a pass; of positions that are computed twice the later ones count."""
        sketches, first = sketch(rows), 0
        for prompt, start, count in spans:
            self._parts.setdefault(point, {}).setdefault(prompt, []).append((start, sketches[first : first + count]))
            first += count

    def sketches(self, lengths: Sequence[int]) -> Sketches:
        """Of each prompt the first positions, as many as `lengths` says."""
        return {
            point: {prompt: _joined(parts, lengths[prompt]) for prompt, parts in of_prompts.items()}
            for point, of_prompts in self._parts.items()
        }


def sketch(rows: Tensor) -> Tensor:
    """[T, SKETCH] of rows [T, ..], on the CPU."""
    flat = rows.detach().flatten(1).float().cpu()
    return flat @ _directions(flat.shape[1])


def parting(found: Sketches, needed: Sketches, floor: float) -> str | None:
    """The point at which the error of the worst position grows most, and that position; None where none is above
    `floor`."""
    before, best, place = floor, 1.0, None
    for point, of_prompts in needed.items():
        worst = max(_worst(found, point, prompt, rows) for prompt, rows in of_prompts.items())
        if worst[0] / before > best:
            best, place = worst[0] / before, f"{point}, prompt {worst[1] + 1}, position {worst[2]}"
        before = max(before, worst[0])
    return place


def _worst(found: Sketches, point: str, prompt: int, needed: Tensor) -> tuple[float, int, int]:
    rows = found.get(point, {}).get(prompt)
    if rows is None:
        return float("inf"), prompt, 0
    seen = ~needed.isnan().any(-1)
    if point.startswith("mtp."):  # how far it drafts at the end depends on what was accepted
        seen &= ~rows.isnan().all(-1)
    if not bool(seen.any()):
        return 0.0, prompt, 0
    errors = row_errors(rows[seen], needed[seen])
    return float(errors.max()), prompt, int(seen.nonzero()[int(errors.argmax())])


def _points(network: Network) -> Iterator[str]:
    for index in range(len(network.layers)):
        yield from (f"layers.{index}{part}" for part in (".attn", ".ffn", ""))
    yield "norm"
    for index, layer in enumerate(network.mtp):
        parts = [
            name for name, _ in layer.named_children() if name in ("enorm", "hnorm", "eh_proj", "e_proj", "h_proj")
        ]
        yield from (f"mtp.{index}.{part}{end}" for part in parts for end in (INPUT, ""))
        yield from (f"mtp.{index}{part}" for part in (".attn", ".ffn", "", ".norm"))


@lru_cache(maxsize=8)
def _directions(width: int) -> Tensor:
    return torch.randn(width, SKETCH, generator=torch.Generator().manual_seed(width))


def _joined(parts: Sequence[tuple[int, Tensor]], length: int) -> Tensor:
    rows = torch.full((length, SKETCH), torch.nan)
    for start, part in parts:
        if start < length:
            rows[start : start + len(part)] = part[: length - start]
    return rows
