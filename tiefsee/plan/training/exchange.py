"""What ranks exchange while they train: bytes on links, as ideal seconds.

experts   dispatch and combine, once forward and once backward. A token goes once to each node that it needs, over the
          fabric, and from there to its ranks over the near link, both at a time (DeepSeek-V3, section 3.2.2); the
          router's groups bound the nodes (4 of 8 for V3).
TP        with sequence parallelism: all-gather before and reduce-scatter after attention and feed-forward
CP        keys and values of the other pieces: latents for MLA, the shared key/value for V4
PP        the residual streams from stage to stage
DP        gradients reduce-scattered, weights all-gathered, hierarchically: a node's ranks share its network cards
"""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.hardware import Chip, Link, link_for
from tiefsee.spec.model import CompressedAttention, LayerSpec, ModelSpec, MoE


@dataclass(frozen=True, slots=True)
class Exchange:
    """Ideal seconds on the near link and on the fabric, which work at the same time, and messages one after another."""

    near_s: float = 0.0
    far_s: float = 0.0
    latency_s: float = 0.0

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(self.near_s + other.near_s, self.far_s + other.far_s, self.latency_s + other.latency_s)

    def __mul__(self, factor: float) -> Exchange:
        return Exchange(self.near_s * factor, self.far_s * factor, self.latency_s * factor)


def near_link(chip: Chip) -> Link | None:
    """The widest link below the fabric: NVLink, UB, HCCS."""
    inner = [link for link in chip.links if link.tier != "fabric"]
    return inner[-1] if inner else None


def far_link(chip: Chip) -> Link | None:
    return next((link for link in chip.links if link.tier == "fabric"), None)


def over(link: Link, num_bytes: float, messages: float = 1.0) -> Exchange:
    seconds, wait = num_bytes / link.bytes_per_s.value, messages * link.latency_s.value
    return Exchange(0.0, seconds, wait) if link.tier == "fabric" else Exchange(seconds, 0.0, wait)


def distinct(places: float, choices: float) -> float:
    """How many of `places` equally likely ones `choices` draws meet, in the mean: 8 draws of 32 meet 7.2."""
    return places * (1.0 - float((1.0 - 1.0 / places) ** choices))


def expert_exchange(moe: MoE, hidden: int, chip: Chip, ep: int, tokens: float, bytes_per_value: float) -> Exchange:
    """One direction of one layer: `tokens` of this rank to the ranks of their experts, or back.

    V3 on H800, EP64, 4,096 tokens in FP8: 3.15 nodes each, 92 MB on the fabric: 1.85 ms at the card's peak.
    """
    if ep == 1:
        return Exchange()
    near, row, choices = near_link(chip), tokens * hidden * bytes_per_value, moe.router.num_experts_per_tok
    size = near.num_chips or ep if near is not None else 1
    router = moe.router
    share = router.topk_group / router.n_group if router.selection != "hash" else 1.0
    if ep <= size:
        assert near is not None
        met = distinct(max(1.0, ep * share), choices) * (1 - 1 / ep)
        return over(near, row * met)
    far = far_link(chip)
    if far is None:
        link_for(chip, ep)  # says that nothing joins so many
        raise AssertionError("link_for finds no link either")
    nodes = ep / size
    far_part = over(far, row * distinct(max(1.0, nodes * share), choices) * (1 - 1 / nodes))
    if near is None or size == 1:
        return far_part
    near_part = over(near, row * distinct(max(1.0, ep * share), choices) * (1 - 1 / size))
    return Exchange(near_part.near_s, far_part.far_s, far_part.latency_s)


def tensor_exchange(hidden: int, chip: Chip, tp: int, tokens: float) -> Exchange:
    """One all-gather or reduce-scatter of [tokens, hidden] in BF16 within a TP group."""
    if tp == 1:
        return Exchange()
    return over(link_for(chip, tp), (tp - 1) / tp * tokens * hidden * 2.0, tp - 1)


def context_exchange(layer: LayerSpec, chip: Chip, tp: int, cp: int, tokens: float) -> Exchange:
    """Keys and values of the other cp - 1 pieces, `tokens` each, in BF16."""
    if cp == 1:
        return Exchange()
    a = layer.attention
    if isinstance(a, CompressedAttention):
        # The window needs a neighbour's last rows; compressed entries come from everybody.
        width = a.head_dim * (1 / a.ratio if a.ratio else 0.0)
    else:
        width = a.kv_lora_rank + a.qk_rope_head_dim
    return over(link_for(chip, cp, stride=tp), (cp - 1) * tokens * width * 2.0, cp - 1)


def stage_exchange(spec: ModelSpec, chip: Chip, tp: int, tokens: float, stride: int, pp: int) -> Exchange:
    """One hand-over between neighbouring stages; each TP rank sends its part. mHC hands over all its streams."""
    if pp == 1:
        return Exchange()
    streams = spec.hyper.hc_mult if spec.hyper is not None else 1
    return over(link_for(chip, 2, stride=stride), tokens / tp * spec.hidden_size * streams * 2.0)


def ring(chip: Chip, group: int, stride: int, num_bytes: float) -> Exchange:
    """One reduce-scatter or all-gather of `num_bytes` over `group` ranks that are `stride` apart.

    Within a node over the near link; across nodes its members there share the traffic over their network cards.
    """
    if group == 1 or num_bytes == 0:
        return Exchange()
    near, far = near_link(chip), far_link(chip)
    size = (near.num_chips or group * stride) if near is not None else 1
    local = max(1, min(group, size // stride))
    nodes = -(-group // local)
    found = Exchange()
    if local > 1 and near is not None:
        found = over(near, num_bytes * (local - 1) / local, local - 1)
    if nodes > 1:
        if far is None:
            link_for(chip, group, stride=stride)
            raise AssertionError("link_for finds no link either")
        # Trees from some size on: latency grows with the logarithm.
        hops = min(nodes - 1.0, 2.0 * nodes.bit_length())
        found += over(far, num_bytes / local * (nodes - 1) / nodes, hops)
    return found
