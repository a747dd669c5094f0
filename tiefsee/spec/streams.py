"""The cache streams of a model, from its layer specs: the one table that memory planning reads.

Kinds of rows, per layer (sizes of V3 and V4):

    latent            MLA latent and rope key, 512 + 64                         history, ratio 1
    index             V3.2 indexer key, 128                                     history, ratio 1
    window            V4 shared key/value, 512                                  state, look-back W
    compressed_M      V4 entry of M tokens, 512                                 history, ratio M
    index_M           V4 indexer key of M tokens, 128                           history, ratio M
    rows_M            what a compressor has not closed: kv and gate, FP32       state
    index_rows_M      the same of the indexer's compressor                      state
    mtp_hidden        the hidden state that the MTP layer reads                 state, look-back 1
"""

from __future__ import annotations

from tiefsee.spec.model import CompressedAttention, LatentAttention, ModelSpec
from tiefsee.streams import Stream


def layer_streams(spec: ModelSpec, layer: int) -> list[Stream]:
    """The streams that one layer declares; `layer` counts MTP layers on from the decoder's."""
    attention = spec.all_layers[layer].attention
    if isinstance(attention, LatentAttention):
        return _latent_streams(attention, layer)
    return _compressed_streams(attention, layer)


def cache_streams(spec: ModelSpec, *, speculate: bool) -> tuple[Stream, ...]:
    """All streams of a model, layers of a kind joined; with `speculate` those of the MTP layers too."""
    num_layers = len(spec.layers) + (len(spec.mtp_layers) if speculate else 0)
    joined: dict[str, Stream] = {}
    for layer in range(num_layers):
        for stream in layer_streams(spec, layer):
            known = joined.get(stream.name)
            joined[stream.name] = stream if known is None else _join(known, stream)
    if speculate and spec.mtp_layers:
        width = (spec.hyper.hc_mult if spec.hyper else 1, spec.hidden_size)
        joined["mtp_hidden"] = Stream("mtp_hidden", (len(spec.layers),), "state", width, lookback=1)
    return tuple(joined.values())


def _join(known: Stream, new: Stream) -> Stream:
    assert (known.family, known.shape, known.ratio) == (new.family, new.shape, new.ratio)
    return Stream(
        known.name, known.layers + new.layers, known.family, known.shape,
        known.ratio, known.overlap, known.lookback, known.dtype,
    )  # fmt: skip


def _latent_streams(attention: LatentAttention, layer: int) -> list[Stream]:
    width = attention.kv_lora_rank + attention.qk_rope_head_dim
    streams = [Stream("latent", (layer,), "history", (width,))]
    if attention.indexer is not None:
        streams.append(Stream("index", (layer,), "history", (attention.indexer.index_head_dim,)))
    return streams


def _compressed_streams(attention: CompressedAttention, layer: int) -> list[Stream]:
    width, ratio, overlap = attention.head_dim, attention.ratio, attention.overlap
    streams = [Stream("window", (layer,), "state", (width,), lookback=attention.sliding_window)]
    if ratio:
        streams += _compressor_streams(f"compressed_{ratio}", f"rows_{ratio}", layer, width, ratio, overlap)
    if attention.indexer is not None:
        width = attention.indexer.index_head_dim
        streams += _compressor_streams(f"index_{ratio}", f"index_rows_{ratio}", layer, width, ratio, overlap)
    return streams


def _compressor_streams(entries: str, rows: str, layer: int, width: int, ratio: int, overlap: bool) -> list[Stream]:
    """Closed entries, and the raw rows of the open window (and, with overlap, of the one before).

    A row is kv and gate side by side, each twice as wide with overlap: 2 * 2 * 512 * 4 = 8,192 B.
    """
    series = 2 if overlap else 1
    return [
        Stream(entries, (layer,), "history", (width,), ratio, overlap),
        Stream(
            rows, (layer,), "state", (2, series * width), ratio, overlap,
            lookback=series * ratio, dtype="float32",
        ),
    ]  # fmt: skip
