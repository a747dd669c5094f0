"""How one model is dealt out over ranks that compute every token together.

Heads, the widths of feed-forwards and rows of the vocabulary are split (tensor parallelism), routed experts go whole
to one rank each (expert parallelism). What is small stays whole on every rank: the latents, the indexer, the
compressors, the router, norms and hyper-connections; so every rank holds the same cached rows and picks the same
experts and entries. What a rank computes of a block is one part of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.errors import ConfigError
from tiefsee.spec.model import Attention, CompressedAttention, DenseFFN, LatentAttention, ModelSpec


@dataclass(frozen=True)
class Split:
    """The share of rank `rank` of `size`.

    Shares are as even as whole heads, blocks and experts allow; the first ranks have the larger ones. `block` is the
    edge of the scale blocks of the checkpoint's weights: no border cuts one.
    """

    rank: int = 0
    size: int = 1
    block: int = 1

    def heads(self, attention: Attention) -> range:
        """Attention heads; of V4 those of whole groups of the output projection."""
        if isinstance(attention, LatentAttention):
            return self._part(attention.num_attention_heads, _head_unit(attention, self.block))
        groups, per_group = self.groups(attention), attention.num_attention_heads // attention.o_groups
        return range(groups.start * per_group, groups.stop * per_group)

    def groups(self, attention: CompressedAttention) -> range:
        """Groups of V4's output projection."""
        return self._part(attention.o_groups, _group_unit(attention, self.block))

    def width(self, intermediate_size: int) -> range:
        """Columns between the two products of a feed-forward."""
        return self._part(intermediate_size, self.block)

    def experts(self, n_routed_experts: int) -> range:
        return self._part(n_routed_experts, 1)

    def vocabulary(self, vocab_size: int) -> range:
        """Rows of the embedding and of the output head."""
        return self._part(vocab_size, 1)

    def _part(self, total: int, unit: int) -> range:
        """This rank's share of `total`, dealt out in units."""
        units, rest = divmod(-(-total // unit), self.size)
        first = self.rank * units + min(self.rank, rest)
        last = first + units + (self.rank < rest)
        return range(min(first * unit, total), min(last * unit, total))


WHOLE = Split()


def split_of(spec: ModelSpec, rank: int, size: int) -> Split:
    """The share of one rank. Raises ConfigError where the model has too few heads, blocks or experts for so many."""
    if size < 1 or not 0 <= rank < size:
        raise ConfigError(f"rank {rank} of {size}; needed a rank from 0 on and below the number of ranks")
    split = Split(rank, size, max(spec.quantisation.block) if spec.quantisation is not None else 1)
    what, most = min(_limits(spec, split.block).items(), key=lambda limit: limit[1])
    if size > most:
        raise ConfigError(f"{size} ranks cannot share {what}; use {most} or fewer")
    return split


def _head_unit(attention: LatentAttention, block: int) -> int:
    """Heads that stay together: their queries, keys and values, and output are whole blocks. V3 in FP8: 2."""
    nope, value = attention.qk_nope_head_dim, attention.v_head_dim
    return _uncut((nope + attention.qk_rope_head_dim, nope + value, value), block)


def _group_unit(attention: CompressedAttention, block: int) -> int:
    per_group = attention.num_attention_heads // attention.o_groups
    return _uncut((per_group * attention.head_dim, attention.o_lora_rank), block)


def _uncut(widths: tuple[int, ...], block: int) -> int:
    """The fewest neighbours whose widths together are whole blocks."""
    return next(n for n in range(1, block + 1) if all(n * width % block == 0 for width in widths))


def _limits(spec: ModelSpec, block: int) -> dict[str, int]:
    """How many ranks each part of the model can be dealt out to."""
    limits = {"the vocabulary": spec.vocab_size}

    def deal(what: str, total: int, unit: int) -> None:
        by = f" in units of {unit}" if unit > 1 else ""
        limits[f"{total} {what}{by}"] = -(-total // unit)

    for layer in spec.all_layers:
        attention, ffn = layer.attention, layer.ffn
        if isinstance(attention, LatentAttention):
            deal("attention heads", attention.num_attention_heads, _head_unit(attention, block))
        else:
            deal("groups of the output projection", attention.o_groups, _group_unit(attention, block))
        if isinstance(ffn, DenseFFN):
            deal("columns of a feed-forward", ffn.intermediate_size, block)
            continue
        deal("routed experts", ffn.n_routed_experts, 1)
        if ffn.n_shared_experts:
            deal("columns of the shared experts", ffn.shared_intermediate_size, block)
    return limits
