"""Shards and packed batches: every token once, no document across a row, a step is a pure function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiefsee.errors import ConfigError, ModelNotFound
from tiefsee.train.evaluate import bits_per_byte, held_out_batches
from tiefsee.train.packing import MIN_PIECE_TOKENS, PackedBatches, Source, mixing_pattern, pack
from tiefsee.train.shards import BOS_ID, EOS_ID, Shard, ShardWriter

VOCAB = 1000
PARAGRAPH_END = 7


def write(path: Path, lengths: list[int], base: int = 100) -> Shard:
    """Documents of `lengths` tokens whose tokens count up, so that each names its place."""
    with ShardWriter(path, token_bytes=[0, 0] + [3] * (VOCAB - 2), paragraph_ends=[PARAGRAPH_END]) as writer:
        for length in lengths:
            writer.add([base + i % 800 for i in range(length - 2)])
    return Shard(path)


def test_a_shard_gives_back_what_was_written(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", [10, 5, 70])
    assert (shard.num_documents, shard.num_tokens, shard.vocab_size) == (3, 85, VOCAB)
    assert shard.window(1, 0, 99).tolist() == [BOS_ID, 100, 101, 102, EOS_ID]
    assert shard.window(2, 30, 4).tolist() == [BOS_ID, 129, 130, 131], "a BOS in front of every window"
    assert shard.tokens.dtype == np.uint16


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OverflowError), ShardWriter(tmp_path / "a", [0] * 10) as writer:
        writer.add([1 << 20])
    assert list(tmp_path.iterdir()) == []


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="tiefsee train data"):
        Shard(tmp_path / "none")
    write(tmp_path / "a", [50])
    binary = tmp_path / "a.bin"
    binary.write_bytes(binary.read_bytes()[:-2])
    with pytest.raises(ConfigError, match="98 bytes and its index says 100"):
        Shard(tmp_path / "a")


def test_windows_begin_with_their_paragraph(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", [1] * VOCAB, [PARAGRAPH_END]) as writer:
        writer.add([50] * 20 + [PARAGRAPH_END] + [51] * 40)
    shard = Shard(tmp_path / "a")
    assert shard.paragraph_start(0, 30, reach=20) == 22
    assert shard.paragraph_start(0, 60, reach=20) == 60, "none within reach"
    assert shard.paragraph_start(0, 10, reach=20) == 0, "a document's start is a paragraph's"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 400), min_size=1, max_size=20), st.integers(32, 100), st.integers(0, 9))
def test_packing_covers_the_text(lengths: list[int], width: int, seed: int) -> None:
    """Rows are full; no piece leaves its document; nothing comes twice; only scraps are lost."""
    if sum(lengths) < 3 * width:
        lengths = [*lengths, 3 * width]
    rows = pack(np.array(lengths), width, np.random.default_rng(seed))
    seen: set[tuple[int, int]] = set()
    for row in rows:
        assert sum(tokens for _, _, tokens in row) == width
        for document, start, tokens in row:
            assert tokens >= 2
            own = tokens - (start > 0)  # a BOS in front is not the document's
            assert start + own <= lengths[document]
            places = {(document, start + i) for i in range(own)}
            assert not places & seen
            seen |= places
    # Lost: a cut end per row of short pieces, scraps of either end, and the last row if it is not full.
    short_rows = sum(1 for row in rows if len(row) > 1)
    assert sum(lengths) - len(seen) <= (short_rows + 1) * width + 2 * MIN_PIECE_TOKENS * len(lengths)


def test_a_step_is_a_pure_function(tmp_path: Path) -> None:
    sources = {
        "long": Source(write(tmp_path / "long", [900, 500]), 3.0),
        "short": Source(write(tmp_path / "short", [9, 20, 33, 12, 40, 7] * 8), 1.0),
    }
    straight = PackedBatches(sources, tokens_per_row=64, rows_per_batch=4, seed=5)
    resumed = PackedBatches(sources, tokens_per_row=64, rows_per_batch=4, seed=5)
    other = PackedBatches(sources, tokens_per_row=64, rows_per_batch=4, seed=6)
    batches = [straight.batch(step) for step in range(40)]  # several epochs of both
    for step in (39, 3, 17):
        tokens_T, lengths = resumed.batch(step)
        assert torch.equal(tokens_T, batches[step][0])
        assert lengths == batches[step][1]
    assert any(not torch.equal(other.batch(s)[0], batches[s][0]) for s in range(3))
    for tokens_T, lengths in batches:
        assert tokens_T.shape == (256,)
        assert tokens_T.dtype == torch.int64
        assert sum(lengths) == 256
        ends = np.cumsum(lengths)
        assert {64, 128, 192, 256} <= set(ends.tolist()), "no document crosses a row"
        starts = [0, *ends[:-1].tolist()]
        assert all(tokens_T[s] == BOS_ID for s in starts)


def test_the_mix_is_met_early() -> None:
    pattern = mixing_pattern(np.array([0.62, 0.16, 0.22]))
    for rows in (16, 100, 1000):
        share = np.bincount(pattern[:rows], minlength=3) / rows
        assert np.abs(share - [0.62, 0.16, 0.22]).max() <= 1 / rows


@pytest.mark.parametrize(
    ("weight", "width", "match"), [(0.0, 64, "weights"), (1.0, 8, "32"), (1.0, 640, "do not fill")]
)
def test_batches_that_cannot_be(tmp_path: Path, weight: float, width: int, match: str) -> None:
    source = Source(write(tmp_path / "a", [100]), weight)
    with pytest.raises(ConfigError, match=match):
        PackedBatches({"a": source}, tokens_per_row=width, rows_per_batch=1).batch(0)


@pytest.mark.parametrize("width", [16, 64, 99, 300])
def test_held_out_windows_count_every_byte_once(tmp_path: Path, width: int) -> None:
    shard = write(tmp_path / "a", [99, 64, 7, 300, 65])
    batches = list(held_out_batches(shard, width, windows_per_batch=3))
    assert sum(b.num_bytes for b in batches) == shard.num_bytes(shard.tokens)
    for batch in batches:
        assert len(batch.tokens_T) == sum(batch.lengths)
        assert max(batch.lengths) <= width
    some = list(held_out_batches(shard, width, windows_per_batch=8, max_windows=2))
    assert [len(b.lengths) for b in some] == [2]


def test_bits_per_byte_of_a_uniform_guess() -> None:
    """A guess among 256 at every byte costs 8 bits."""
    assert bits_per_byte(float(10 * np.log(256)), 10) == pytest.approx(8)
