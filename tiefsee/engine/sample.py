"""From logits to one token: penalties, truncation, and noise that depends on (seed, position) alone.

A token is drawn by the Gumbel trick: argmax of logit / temperature + noise, the noise of a token being a
hash of (seed, position, token). No generator has a state, so the same position draws the same token in
any batch, after a preemption and on another device; and small differences between two devices rarely
change it. A draft is accepted when it equals what is drawn here, so text does not depend on drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tiefsee.engine.delta import TokenLogprobs
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import NoToken

_MASK = (1 << 64) - 1
# Biases and penalties move a logit at most so far: no sum of a few such is infinite in float32.
_FAR = 1e30
# Below it a temperature chooses as 0 does: neighbours in float32 are then more than 90 nats apart.
_COLDEST = 1e-8


def draw(
    logits_W: Tensor, sampling: Sampling, seed: int, position: int, prompt: Sequence[int],
    generated: Sequence[int], ending: Sequence[int] = (), allowed_W: Tensor | None = None,
) -> int:  # fmt: skip
    """The token for `position`, from float32 logits [W].

    `ending` are tokens that would end the text (banned until min_tokens are out); `allowed_W` is a
    grammar's mask. Raises NoToken if no logit is finite.
    """
    logits_W = adjust(logits_W, sampling, prompt, generated)
    if len(generated) < sampling.min_tokens and ending:
        logits_W = logits_W.index_fill(0, torch.tensor(list(ending), device=logits_W.device), -torch.inf)
    if allowed_W is not None:
        logits_W = logits_W.masked_fill(~allowed_W, -torch.inf)
    assert sampling.temperature is not None, "open fields are filled by with_defaults"
    best = int(logits_W.argmax())
    if not logits_W[best].isfinite():
        raise NoToken(f"the best logit at position {position} is {float(logits_W[best])}: no token can be drawn")
    if sampling.temperature == 0:
        return best
    # Less the best one, so that the coldest temperature makes no infinity.
    scaled_W = (logits_W - logits_W[best]) / max(sampling.temperature, _COLDEST)
    # The rest needs float64, which not every device has: Ascend's torch silently takes float32, where the noise of one
    # token in 2 ** 25 is infinite.
    scaled_W = scaled_W.cpu()
    candidates, scaled = truncate(scaled_W, sampling)
    return int(candidates[(scaled.double() + gumbel(seed, position, candidates)).argmax()])


def adjust(logits_W: Tensor, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Logits after bias and penalties.

    repetition_penalty divides positive and multiplies negative logits of every token seen (CTRL, arXiv
    1909.05858); presence and frequency penalties subtract, for generated tokens only (OpenAI).
    """
    repetition = sampling.repetition_penalty or 1.0
    if repetition != 1.0:
        seen = torch.tensor(sorted({*prompt, *generated}), device=logits_W.device)
        values = logits_W[seen]
        values = torch.where(values > 0, values / max(repetition, 1 / _FAR), values * repetition)
        logits_W = logits_W.index_copy(0, seen, values.clamp(-_FAR, _FAR))
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(generated)
        ids = torch.tensor(list(counts), device=logits_W.device)
        times = torch.tensor(list(counts.values()), device=logits_W.device, dtype=logits_W.dtype)
        cost = sampling.presence_penalty + sampling.frequency_penalty * times
        logits_W = logits_W.index_add(0, ids, -cost)
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=logits_W.device)
        bias = torch.tensor(list(sampling.logit_bias.values()), device=logits_W.device, dtype=logits_W.dtype)
        logits_W = logits_W.index_add(0, ids, bias.clamp(-_FAR, _FAR))
    return logits_W


def truncate(scaled_W: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Candidates (token ids) that survive top-k, then top-p, then min-p, and their scaled logits.

    As in vLLM: top-p keeps the smallest set whose probability reaches p, and always the best token;
    min-p keeps tokens of at least min_p times the best one's probability.
    """
    everything = torch.arange(len(scaled_W), device=scaled_W.device)
    top_k, top_p, min_p = sampling.top_k or 0, sampling.top_p or 1.0, sampling.min_p or 0.0
    if not top_k and top_p >= 1.0 and not min_p:
        return everything, scaled_W
    ordered, ids = scaled_W.sort(descending=True, stable=True)
    if top_k:
        ordered, ids = ordered[:top_k], ids[:top_k]
    probs = ordered.double().softmax(0)
    keep = torch.ones_like(ids, dtype=torch.bool)
    if top_p < 1.0:
        keep &= probs.cumsum(0) - probs < top_p
    if min_p:
        keep &= probs >= min_p * probs[0]
    return ids[keep], ordered[keep]


def gumbel(seed: int, position: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise of each token id, float64, a pure function of (seed, position, token)."""
    base = _mix(_mix(seed & _MASK) ^ (position & _MASK))
    bits = _mix_tensor(tokens.to(torch.int64) ^ _signed(base))
    # 53 bits make a uniform in (0, 1); the half step keeps log away from 0 and from 1.
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
    return -(-uniform.log()).log()


def _mix(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """The same on int64, whose products wrap; shifts are made logical by masks."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def token_logprobs(logits_W: Tensor, token: int, num_top: int) -> TokenLogprobs:
    """Log probability and rank (1 is the best) of `token`, and the `num_top` best, from raw logits."""
    logprobs_W = logits_W.float().log_softmax(-1)
    own = logprobs_W[token]
    top = logprobs_W.topk(min(num_top, len(logprobs_W))) if num_top else None
    pairs = () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprobs(token, float(own), int((logprobs_W > own).sum()) + 1, pairs)
