"""Packed batches: step -> tokens is a pure function of the seed, so resuming needs the step number only.

A row is `tokens_per_row` tokens from one source. Long documents are cut into windows, short ones are laid
side by side; `lengths` says where documents end, and training isolates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiefsee.errors import ConfigError
from tiefsee.train.shards import Shard

# (document, start in it, tokens)
Piece = tuple[int, int, int]
Row = list[Piece]
PATTERN_ROWS = 1000  # weights are met exactly over this many rows, and nearly so over any few
MIN_PIECE_TOKENS = 16  # a shorter rest of a document teaches nothing and costs a segment of its own
PARAGRAPH_REACH_SHARE = 4  # a window moves back by at most a quarter of its length


@dataclass(frozen=True)
class Source:
    """A shard and its share of the rows; weights need not add up to 1."""

    shard: Shard
    weight: float


# By rows. Tales are 3 % of the prose but nearest to what the model may learn to tell; problems are short,
# and a fifth of the tokens shows each kind of them tens of thousands of times.
MIXTURE = {"novels": 0.62, "tales": 0.16, "tasks": 0.22}


def open_batches(
    folder: Path,
    tokens_per_row: int,
    rows_per_batch: int,
    seed: int = 0,
    mixture: Mapping[str, float] = MIXTURE,
) -> PackedBatches:
    """Batches from the shards that `corpus.prepare` wrote to `folder`, mixed by `mixture`."""
    sources = {name: Source(Shard(folder / name), weight) for name, weight in mixture.items()}
    return PackedBatches(sources, tokens_per_row, rows_per_batch, seed)


class PackedBatches:
    """Batches of `rows_per_batch` rows from weighted sources; see `batch`."""

    def __init__(self, sources: Mapping[str, Source], tokens_per_row: int, rows_per_batch: int, seed: int = 0) -> None:
        weights = [source.weight for source in sources.values()]
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            raise ConfigError(
                f"source weights are {dict(zip(sources, weights, strict=True))}; "
                "none may be negative and one must be positive"
            )
        if tokens_per_row < 2 * MIN_PIECE_TOKENS or rows_per_batch < 1:
            raise ConfigError(
                f"{rows_per_batch} rows of {tokens_per_row} tokens; needed are at least one row of "
                f"{2 * MIN_PIECE_TOKENS} tokens"
            )
        self.tokens_per_row, self.rows_per_batch, self.seed = tokens_per_row, rows_per_batch, seed
        self.names = tuple(sources)
        self._streams = [
            _RowStream(source.shard, tokens_per_row, (seed, index)) for index, source in enumerate(sources.values())
        ]
        self._pattern = mixing_pattern(np.array(weights, dtype=np.float64))

    def batch(self, step: int) -> tuple[Tensor, list[int]]:
        """Tokens of step `step`, [rows x tokens_per_row] in one int64 row, and the lengths of its documents.

        Every row is full and no document crosses a row, so lengths add up to the number of tokens and
        each is between 2 and `tokens_per_row`.
        """
        tokens: list[NDArray[np.int64]] = []
        for row in range(step * self.rows_per_batch, (step + 1) * self.rows_per_batch):
            stream, number = self._place(row)
            tokens += self._streams[stream].row(number)
        return torch.from_numpy(np.concatenate(tokens)), [len(piece) for piece in tokens]

    def source_of(self, row: int) -> str:
        """Which source the row with this number over all steps comes from."""
        return self.names[self._place(row)[0]]

    def state(self, step: int) -> dict[str, int]:
        """What `batch` depends on, to be kept beside a checkpoint and compared on resuming."""
        return {
            "step": step,
            "seed": self.seed,
            "tokens_per_row": self.tokens_per_row,
            "rows_per_batch": self.rows_per_batch,
        }

    def _place(self, row: int) -> tuple[int, int]:
        """Source of a row, and how many rows that source gave before it."""
        rounds, offset = divmod(row, len(self._pattern))
        stream = int(self._pattern[offset])
        in_round = self._pattern == stream
        return stream, rounds * int(in_round.sum()) + int(in_round[:offset].sum())


def mixing_pattern(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Source of each of `PATTERN_ROWS` rows: always the one furthest behind its share.

    So any few rows in a row hold close to the wanted mix: noise of the mix would be noise of the gradient.
    """
    shares = weights / weights.sum()
    given = np.zeros(len(shares))
    pattern = np.empty(PATTERN_ROWS, dtype=np.int64)
    for row in range(PATTERN_ROWS):
        pattern[row] = int(np.argmax(shares * (row + 1) - given))
        given[pattern[row]] += 1
    return pattern


class _RowStream:
    """Rows of one shard, epoch after epoch, each epoch cut and ordered anew from (seed, epoch)."""

    def __init__(self, shard: Shard, tokens_per_row: int, seed: tuple[int, int]) -> None:
        self._shard, self._tokens_per_row, self._seed = shard, tokens_per_row, seed
        self._epoch: tuple[int, list[Row]] | None = None

    @cached_property
    def rows_per_epoch(self) -> int:
        """Fixed by the first epoch, so that row -> epoch needs no history; later ones wrap or stop there."""
        return len(self._rows(0))

    def row(self, number: int) -> list[NDArray[np.int64]]:
        epoch, index = divmod(number, self.rows_per_epoch)
        rows = self._rows(epoch)
        return [self._read(piece) for piece in rows[index % len(rows)]]

    def _read(self, piece: Piece) -> NDArray[np.int64]:
        document, start, num_tokens = piece
        if start and num_tokens == self._tokens_per_row:
            # A window begins with its paragraph where it can, as a prompt would. Tails hold the EOS and stay.
            start = self._shard.paragraph_start(document, start, num_tokens // PARAGRAPH_REACH_SHARE)
        window = self._shard.window(document, start, num_tokens)
        assert len(window) == num_tokens
        return window

    def _rows(self, epoch: int) -> list[Row]:
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng((*self._seed, epoch))
            rows = pack(np.diff(self._shard.offsets), self._tokens_per_row, rng)
            self._epoch = (epoch, [rows[i] for i in rng.permutation(len(rows))])
        return self._epoch[1]


def pack(lengths: NDArray[np.int64], tokens_per_row: int, rng: np.random.Generator) -> list[Row]:
    """Cut and pack documents of `lengths` tokens into full rows; the cuts move with the generator.

    Windows of long documents fill rows of their own. What is shorter is laid side by side, and the piece
    that does not fit is cut off at the row's end: rather the end of a tale is lost than a question's begin.
    """
    rows: list[Row] = []
    short: list[Piece] = []
    for document in rng.permutation(len(lengths)).tolist():
        full, rest = cut(document, int(lengths[document]), tokens_per_row, rng)
        rows += [[piece] for piece in full]
        short += rest
    open_row: Row = []
    room = tokens_per_row
    for document, start, length in short:
        taken = min(length, room)
        if room - taken == 1:
            # One token is no document: the next one gets two, of which this piece or row gives one up.
            taken -= 1
        open_row.append((document, start, taken))
        room -= taken
        if room == 0:
            rows.append(open_row)
            open_row, room = [], tokens_per_row
    if not rows:
        raise ConfigError(
            f"{int(lengths.sum())} tokens in {len(lengths)} documents do not fill a row of {tokens_per_row}; "
            "add text or use shorter rows"
        )
    return rows


def cut(document: int, length: int, width: int, rng: np.random.Generator) -> tuple[list[Piece], list[Piece]]:
    """Windows of `width` tokens of one document, and its shorter pieces: head and tail, or all of it.

    The windows begin at a random token, so that each epoch cuts elsewhere. A window that does not
    begin its document carries a BOS, and therefore one token less of the document.
    """
    if length <= width:
        return [], [(document, 0, length)]
    first = int(rng.integers(1, width))
    starts = range(first, length - (width - 1) + 1, width - 1)
    end = first + len(starts) * (width - 1)
    head, tail = (document, 0, first), (document, end, length - end + 1)
    full = [(document, start, width) for start in starts]
    return full, [piece for piece in (head, tail) if piece[2] >= MIN_PIECE_TOKENS]
