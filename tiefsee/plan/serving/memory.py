"""What one card of a worker holds, and so how many requests the worker admits.

    card x fraction  =  weights + activations + exchange + runtime + cache

Assuming that a card is all cache is the error that costs most: a planner that did predicted 4.6 times what was
measured, since the engine admitted 29 requests where it counted on 96 (aiconfigurator issue 1396). So each part is
counted, and what can only be estimated is a constant here, with its reason.

MLA's latents and V4's entries belong to all heads at once: tensor parallelism cannot split them, each rank of a TP
group keeps a copy. A group of any `tp` therefore admits what one of its cards does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.errors import OutOfMemory
from tiefsee.plan.serving.cache import CACHE_DTYPES, bytes_per_token, streams_of
from tiefsee.plan.serving.step import PREFILL_TOKENS
from tiefsee.plan.serving.weights import rank_weight_bytes
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import BYTES
from tiefsee.spec.model import Attention, DenseFFN, LatentAttention, LayerSpec, MoE
from tiefsee.streams import block_tokens
from tiefsee.units import format_bytes

# The share of a card that an engine takes: vLLM's gpu_memory_utilization is 0.9, SGLang's mem_fraction_static 0.8 to
# 0.9. The rest is fragmentation, and whatever else is on the card.
MEMORY_FRACTION = 0.9
# Device context (0.5 GB), communicators (about 1 GB with several groups), captured graphs and libraries' workspaces
# (1 to 2 GB): an estimate, between 2 and 5 GB on engines that log it.
RUNTIME_BYTES = 3e9
# Tokens that a rank may dispatch at once in the low-latency exchange of experts: DeepEP's buffers are sized for it,
# 2 directions x 2 in turn x experts x tokens x hidden x BF16. V3: 4 * 256 * 128 * 7168 * 2 = 1.88 GB.
DISPATCH_TOKENS = 128
# Prompts longer than this are expanded (MLA) piece by piece.
EXPANDED_TOKENS = 65536
# How far a batch may exceed its mean length, in standard deviations: requests are at random points of their answers.
MARGIN = 2.0


@dataclass(frozen=True)
class Memory:
    """One card of a worker, in bytes; `num_groups` cards hold different requests, the others copies.

    `token_bytes` is what each cached token takes for as long as its request lives (V3 in BF16: 70,272),
    `request_bytes` what a request takes besides: rings and a snapshot of V4's states.
    """

    card: str
    num_chips: int
    num_groups: int
    card_bytes: float
    fraction: float
    weight_bytes: float
    activation_bytes: float
    exchange_bytes: float
    runtime_bytes: float
    token_bytes: float
    request_bytes: float
    block_tokens: int

    @property
    def usable_bytes(self) -> float:
        return self.card_bytes * self.fraction

    @property
    def fixed_bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes + self.exchange_bytes + self.runtime_bytes

    @property
    def cache_bytes(self) -> float:
        """What is left for requests; below 0 where not even the weights fit."""
        return self.usable_bytes - self.fixed_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache of one group, as the scheduler counts them."""
        return max(0, int(self.cache_bytes // (self.token_bytes * self.block_tokens)))

    def held_bytes(self, tokens: float) -> float:
        """What a request of that many tokens takes: whole blocks."""
        return math.ceil(tokens / self.block_tokens) * self.block_tokens * self.token_bytes + self.request_bytes

    def requests_of_length(self, tokens: float) -> int:
        """Requests of the whole worker that all have that many tokens."""
        return self.num_groups * max(0, int(self.cache_bytes // self.held_bytes(tokens)))

    def max_requests(self, isl: float, osl: float) -> int:
        """Requests that the worker can keep running.

        They stand at different points of their answers, so a group of b takes b (isl + osl / 2) tokens in the mean,
        with a deviation of osl sqrt(b / 12); MARGIN deviations must fit, or else somebody is preempted and computed
        again. Never fewer than fit at full length.
        """
        longest = self.held_bytes(isl + osl)
        if self.cache_bytes < longest:
            return 0
        mean = self.held_bytes(isl + osl / 2) + self.block_tokens / 2 * self.token_bytes
        swing = MARGIN * self.token_bytes * osl / math.sqrt(12)
        root = (math.sqrt(swing * swing + 4 * mean * self.cache_bytes) - swing) / (2 * mean)
        return self.num_groups * max(int(root * root), int(self.cache_bytes // longest))

    def parts(self) -> dict[str, float]:
        """For a report; they add up to the card."""
        return {
            "weights": self.weight_bytes, "activations": self.activation_bytes, "exchange": self.exchange_bytes,
            "runtime": self.runtime_bytes, "cache": self.cache_bytes, "left free": self.card_bytes - self.usable_bytes,
        }  # fmt: skip


def worker_memory(
    worker: Worker, *, isl: float, drafts: int = 0, prefill: bool = True, decode: bool = True,
    redundant_experts: int = 0, keeps_prefixes: bool = False, fraction: float = MEMORY_FRACTION,
) -> Memory:  # fmt: skip
    """The memory of a worker's cards. `prefill` and `decode` say what it does: prompts of `isl` tokens need room for
    their activations, decoding for the buffers of the low-latency exchange."""
    spec, shard = worker.spec, worker.shard
    streams = streams_of(spec, drafts > 0)
    dtype = CACHE_DTYPES[worker.formats.cache]
    request = sum(s.ring_bytes(drafts, dtype) for s in streams)
    if keeps_prefixes:
        request += sum(s.snapshot_bytes(dtype) for s in streams)
    weights = rank_weight_bytes(
        spec, worker.formats, shard.tp, shard.ep, shard.moe_tp, with_mtp=drafts > 0, redundant_experts=redundant_experts
    )
    return Memory(
        card=worker.chip.name,
        num_chips=worker.num_chips,
        num_groups=worker.dp,
        card_bytes=worker.chip.memory_bytes.value,
        fraction=fraction,
        weight_bytes=weights / worker.pp,
        activation_bytes=activation_bytes(worker, isl if prefill else 0.0, drafts),
        exchange_bytes=_exchange_bytes(worker) if decode else 0.0,
        runtime_bytes=RUNTIME_BYTES,
        token_bytes=bytes_per_token(streams, dtype) / worker.pp,
        request_bytes=request / worker.pp,
        block_tokens=block_tokens(streams),
    )


def check_fits(worker: Worker, memory: Memory, isl: float, osl: float, batch: float = 1.0) -> None:
    """Raises OutOfMemory, with the bytes that are short on each card and what would fit."""
    most = memory.max_requests(isl, osl)
    if batch <= most:
        return
    where = f"{worker_name(worker)} on {memory.num_chips} x {memory.card}"
    if memory.cache_bytes < 0:
        raise OutOfMemory(
            f"{where}: weights take {format_bytes(memory.weight_bytes)} of each card, {_besides(memory)}, but "
            f"{format_bytes(memory.usable_bytes)} are usable ({memory.fraction:.0%} of "
            f"{format_bytes(memory.card_bytes)}): {format_bytes(-memory.cache_bytes)} short. "
            f"{_more_cards(worker, memory)}"
        )
    if most == 0:
        longest = int(memory.cache_bytes // memory.token_bytes)
        short = memory.held_bytes(isl + osl) - memory.cache_bytes
        raise OutOfMemory(
            f"{where}: one request of {isl + osl:,.0f} tokens takes {format_bytes(memory.held_bytes(isl + osl))} of "
            f"cache, {format_bytes(max(0.0, memory.cache_bytes))} are left: {format_bytes(short)} short on each card. "
            f"{longest:,} tokens would fit; shorten the request, or take more cards or a smaller number format"
        )
    groups = memory.num_groups
    short = (batch / groups) * memory.held_bytes(isl + osl / 2) - memory.cache_bytes
    raise OutOfMemory(
        f"{where}: {batch:,.0f} requests of {isl:,.0f} + {osl:,.0f} tokens are "
        f"{format_bytes(max(short, 0.0))} more than each card holds; {most:,} requests would fit"
    )


def worker_name(worker: Worker) -> str:
    """TP8, or DP16 EP16; what is 1 is left out."""
    sizes = (("TP", worker.tp), ("DP", worker.dp), ("EP", worker.ep), ("MoE-TP", worker.moe_tp))
    return " ".join(f"{name}{size}" for name, size in sizes if size > 1) or "one card"


# ------------------------------------------------------------------------- activations and buffers


def activation_bytes(worker: Worker, isl: float, drafts: int) -> float:
    """The most that a step's intermediate values take at once: residuals, and the larger of attention and experts.

    Prefill steps of PREFILL_TOKENS decide: V3, TP8: 8192 * 8 * (2 * 7168 + 3 * 2048 / 8) * 2 = 2 GB among experts.
    """
    spec, formats = worker.spec, worker.formats
    tokens = float(PREFILL_TOKENS) if isl else float(DISPATCH_TOKENS * (1 + drafts))
    streams = 1 if spec.hyper is None else spec.hyper.hc_mult
    own = BYTES[formats.activations]
    residual = tokens * spec.hidden_size * own * (1 + streams)
    attention = max(_attention_values(worker, layer.attention, tokens, isl) for layer in _distinct_layers(spec))
    experts = max((_expert_values(worker, layer.ffn, tokens) for layer in _distinct_layers(spec)), default=0.0)
    logits = DISPATCH_TOKENS * (1 + drafts) * spec.vocab_size / worker.tp * BYTES["fp32"]
    return residual + max(attention * own, experts * own, logits)


@lru_cache(maxsize=32)
def _distinct_layers(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    return tuple(dict.fromkeys(spec.layers))


def _attention_values(worker: Worker, attention: Attention, tokens: float, isl: float) -> float:
    heads = attention.num_attention_heads / worker.tp
    if not isinstance(attention, LatentAttention):
        return tokens * heads * 2 * attention.head_dim
    width = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    query = tokens * heads * (width + attention.v_head_dim)
    expanded = min(max(isl, tokens), EXPANDED_TOKENS) if isl and attention.indexer is None else 0.0
    return query + expanded * heads * (width + attention.v_head_dim)


def _expert_values(worker: Worker, ffn: DenseFFN | MoE, tokens: float) -> float:
    """Tokens as they arrive at a rank's experts, what they make inside, and what goes back."""
    if not isinstance(ffn, MoE):
        return 0.0
    hidden, width = worker.spec.hidden_size, ffn.moe_intermediate_size / worker.moe_tp
    pairs = tokens * worker.dp * ffn.router.num_experts_per_tok / worker.ep * (worker.imbalance or 1.0)
    return pairs * (2 * hidden + 3 * width)


def _exchange_bytes(worker: Worker) -> float:
    if worker.ep == 1 or worker.dp == 1:
        return 0.0
    experts = max((layer.ffn.n_routed_experts for layer in worker.spec.layers if isinstance(layer.ffn, MoE)), default=0)
    return 4.0 * experts * DISPATCH_TOKENS * worker.spec.hidden_size * BYTES["bf16"]


# --------------------------------------------------------------------------------------- messages


def _besides(memory: Memory) -> str:
    rest = memory.fixed_bytes - memory.weight_bytes
    return f"activations and buffers {format_bytes(rest)}"


def _more_cards(worker: Worker, memory: Memory) -> str:
    """How many cards the weights would need, if experts are spread over them."""
    spec, formats = worker.spec, worker.formats
    rest = memory.fixed_bytes - memory.weight_bytes
    for num_chips in (2**n for n in range(1, 11)):
        weights = rank_weight_bytes(spec, formats, min(num_chips, 8), num_chips, 1)
        if num_chips > worker.num_chips and weights + rest < memory.usable_bytes:
            return f"{num_chips} such cards would hold it (experts over all of them)"
    return "Take a smaller number format, or cards with more memory"


__all__ = [
    "MEMORY_FRACTION", "Memory", "activation_bytes", "check_fits", "worker_memory", "worker_name",
]  # fmt: skip
