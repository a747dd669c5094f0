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

from dataclasses import replace

from tiefsee.layouts import Scales
from tiefsee.spec.model import CompressedAttention, LatentAttention, ModelSpec
from tiefsee.streams import Stream

# The published FP8 forms. Latents: FlashMLA's README (512 codes, 4 scales, 64 in BF16: 656 B); indexer keys:
# V3.2-Exp's inference code (128 codes, 1 scale: 132 B); V4's rows: vLLM's fp8_ds_mla (448 codes, 64 in BF16,
# 7 scales and a byte unused: 584 B).
LATENT_SCALES = Scales(128, "float32")
KEY_SCALES = Scales(128, "float32")
SHARED_SCALES = Scales(64, "ue8m0")


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
    joined = replace(known, layers=known.layers + new.layers)
    assert joined == replace(new, layers=joined.layers)
    return joined


def _latent_streams(attention: LatentAttention, layer: int) -> list[Stream]:
    width = attention.kv_lora_rank + attention.qk_rope_head_dim
    rotated = attention.qk_rope_head_dim
    streams = [Stream("latent", (layer,), "history", (width,), num_rotated=rotated, scales=LATENT_SCALES)]
    if attention.indexer is not None:
        streams.append(Stream("index", (layer,), "history", (attention.indexer.index_head_dim,), scales=KEY_SCALES))
    return streams


def _compressed_streams(attention: CompressedAttention, layer: int) -> list[Stream]:
    width, ratio, rotated = attention.head_dim, attention.ratio, attention.rope.dim
    streams = [
        Stream(
            "window", (layer,), "state", (width,), lookback=attention.sliding_window,
            num_rotated=rotated, scales=SHARED_SCALES,
        )
    ]  # fmt: skip
    if ratio:
        entries = Stream(
            f"compressed_{ratio}", (layer,), "history", (width,), ratio, attention.overlap,
            num_rotated=rotated, scales=SHARED_SCALES,
        )  # fmt: skip
        streams += [entries, _open_rows(f"rows_{ratio}", entries)]
    if attention.indexer is not None:
        width = attention.indexer.index_head_dim
        entries = Stream(f"index_{ratio}", (layer,), "history", (width,), ratio, attention.overlap, scales=KEY_SCALES)
        streams += [entries, _open_rows(f"index_rows_{ratio}", entries)]
    return streams


def _open_rows(name: str, entries: Stream) -> Stream:
    """The raw rows of the window that a compressor has not closed (and, with overlap, of the one before).

    A row is kv and gate side by side, each twice as wide with overlap: 2 * 2 * 512 * 4 = 8,192 B.
    """
    series = 2 if entries.overlap else 1
    return Stream(
        name, entries.layers, "state", (2, series * entries.num_values), entries.ratio, entries.overlap,
        lookback=series * entries.ratio, dtype="float32",
    )  # fmt: skip
