"""Bugs that an MTP layer could have: in how it was loaded, in its own code, in how the engine feeds it.

`DRAFT_FAULTS` maps a name to the families that it concerns, where it must be seen, and what is done to a network (and,
for those of the engine, to its classes, which `patch` undoes). An operator is blamed at its place; what lies between
operators shows where the runs part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tiefsee.engine.speculate import Drafter, _Span
from tiefsee.model import Network
from tiefsee.model.network import Hidden, collapse
from tiefsee.model.network import Network as AnyNetwork


@dataclass(frozen=True)
class DraftFault:
    """`operator` is blamed at `place`, or, where it is None, the runs part there."""

    families: tuple[str, ...]
    operator: str | None
    place: str
    plant: Callable[[Network, Any], None]


DRAFT_FAULTS: dict[str, DraftFault] = {}
JOINED = ("v3", "v3.2")  # one matrix joins embedding and hidden state
EVERY = (*JOINED, "v4")


def fault(name: str, operator: str | None, place: str, *families: str):
    def enter(plant):
        DRAFT_FAULTS[name] = DraftFault(families, operator, place, plant)
        return plant

    return enter


def exchange(one: Any, other: Any) -> None:
    one.data, other.data = other.data, one.data


# ------------------------------------------------------------------------------------------ loaded wrongly


@fault("enorm and hnorm swapped", "rms_norm", "mtp.0.", *EVERY)
def _(network, patch):
    exchange(network.mtp[0].enorm.weight, network.mtp[0].hnorm.weight)


@fault("halves of eh_proj swapped", "linear", "mtp.0.eh_proj", *JOINED)
def _(network, patch):
    weight = network.mtp[0].eh_proj.weight
    weight.data = weight.data.roll(weight.shape[1] // 2, 1)


@fault("e_proj and h_proj swapped", "linear", "mtp.0.", "v4")
def _(network, patch):
    exchange(network.mtp[0].e_proj.weight, network.mtp[0].h_proj.weight)


@fault("the decoder's last norm instead of its own", "rms_norm", "mtp.0.norm", *EVERY)
def _(network, patch):
    network.mtp[0].norm.weight = network.norm.weight


@fault("the decoder's mHC head instead of its own", "hyper_head", "mtp.0", "v4")
def _(network, patch):
    network.mtp[0].hc_head_fn = network.hc_head_fn


@fault("expert bias of the layer before", "select_experts", "mtp.0.ffn.gate", *EVERY)
def _(network, patch):
    network.mtp[0].ffn.gate.bias = network.layers[-1].ffn.gate.bias


# ----------------------------------------------------------------------------------------- its own code


@fault("hidden state before the embedding", None, "mtp.0.eh_proj input", *JOINED)
def _(network, patch):
    block = network.mtp[0]

    def draft(embedding, hidden, step):
        joined = torch.cat((block.hnorm(hidden.squeeze(1)), block.enorm(embedding)), dim=-1)
        final = block.norm(block(block.eh_proj(joined), step))
        return Hidden(final, final.unsqueeze(1))

    block.draft = draft


@fault("norms applied to each other's input", None, "mtp.0.", *JOINED)
def _(network, patch):
    block = network.mtp[0]

    def draft(embedding, hidden, step):
        joined = torch.cat((block.hnorm(embedding), block.enorm(hidden.squeeze(1))), dim=-1)
        final = block.norm(block(block.eh_proj(joined), step))
        return Hidden(final, final.unsqueeze(1))

    block.draft = draft


@fault("embedding added to one residual stream only", None, "mtp.0.", "v4")
def _(network, patch):
    block = network.mtp[0]

    def draft(embedding, hidden, step):
        streams = block.h_proj(block.hnorm(hidden))
        streams[:, 0] += block.e_proj(block.enorm(embedding))
        streams = block(streams, step)
        return Hidden(block.norm(collapse(block.ops, block, block.spec, streams)), streams)

    block.draft = draft


# ------------------------------------------------------------------------------------ fed by the engine


@fault("hidden state of the wrong position", None, "mtp.0.hnorm input", *EVERY)
def _(network, patch):
    hidden = _Span.hidden
    patch.setattr(_Span, "hidden", lambda self, *arguments: hidden(self, *arguments).roll(1, 0))


@fault("hidden state before the last norm", None, "mtp.0.hnorm input", *JOINED)
def _(network, patch):
    forward = AnyNetwork.forward

    def early(tokens, positions, view):
        kept = []
        handle = network.norm.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
        found = forward(network, tokens, positions, view)
        handle.remove()
        return Hidden(found.final_TD, kept[0].unsqueeze(1))

    network.forward = early


@fault("token of the position before", None, "mtp.0.enorm input", *EVERY)
def _(network, patch):
    patch.setattr(_Span, "tokens", lambda self: self.committed.entry.request.tokens[self.first - 1 : self.last - 1])


@fault("state from before the step forgotten", None, "mtp.0.hnorm input", *EVERY)
def _(network, patch):
    hidden = _Span.hidden
    patch.setattr(
        _Span, "hidden",
        lambda self, own, before: hidden(self, own, None if before is None else torch.zeros_like(before)),
    )  # fmt: skip


@fault("positions of the MTP layer one too late", None, "mtp.0.attn", *EVERY)
def _(network, patch):
    draft = network.draft
    network.draft = lambda index, tokens, positions, *rest: draft(index, tokens, positions + 3 * (positions % 2), *rest)


@fault("rows of the step before are not its own", None, "mtp.0.attn", "v3", "v4")
def _(network, patch):
    first_pass = Drafter._first_pass

    def blind(self, spans, result):
        for span in spans:
            span.origin = span.first  # as if drafting began anew with every step
        return first_pass(self, spans, result)

    patch.setattr(Drafter, "_first_pass", blind)
