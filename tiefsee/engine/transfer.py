"""A live request moves from one engine to another, whatever device, layout or dtype either has.

    here     moved = core.export(request_id)        the request is held, and nothing is lost
    there    generation = core.admit(moved, tell)   checked, converted, written; then it goes on
    here     core.release(request_id)               or core.resume(request_id), if it was not admitted

Its tokens do not depend on where they are drawn: noise is a function of seed and position, and the cached rows go
with the request. Rows travel as the sender stores them; the receiver converts them to its own layout.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tiefsee.engine.carry import gather, keep_state, scatter
from tiefsee.engine.delta import Delta
from tiefsee.engine.generation import Generation, sample_seed
from tiefsee.engine.moved import (
    Header,
    Moved,
    MovedAnswer,
    MovedRequest,
    MovedStream,
    pack_logprobs,
    unpack_logprobs,
)
from tiefsee.errors import MovedAlready, MoveError, MoveMismatch, RequestError
from tiefsee.schedule import Request, State, handover
from tiefsee.streams import Stream

if TYPE_CHECKING:
    from tiefsee.engine.core import EngineCore

Tell = Callable[[int, Delta], None]
# Of the moves that were admitted here: a sender that heard no answer asks again within seconds.
REMEMBERED_TICKETS = 4096


# ---------------------------------------------------------------------------------------------- here


def export(core: EngineCore, request_id: str) -> Moved:
    """All that another engine needs, copied to the CPU. The request is held here until `release` or `resume`.

    To be called between two steps. Raises MoveError for a request that is not there, or is held already, or whose
    prompt's logits are being collected.
    """
    generation = core.generation(request_id)
    if generation is None:
        raise MoveError(f"there is no live request {request_id!r} here; it may have finished")
    request = generation.request
    if request.state is State.HELD:
        raise MoveError(f"request {request_id!r} is being moved already; release or resume it first")
    if generation.prompt_rows is not None and request.num_committed_tokens < request.num_prompt_tokens:
        raise MoveError(f"the logits of the prompt of request {request_id!r} are collected here; move it after that")
    core.flush_orders()
    streams, rows = gather(core, request)
    header = Header(
        core.fingerprint, secrets.token_hex(16),
        MovedRequest(
            tuple(request.tokens), request.num_prompt_tokens, request.num_committed_tokens, request.max_tokens,
            request.priority, request.salt, request.num_cached_tokens,
        ),
        MovedAnswer(
            generation.index, generation.seed, generation.sampling, generation.eos_ids,
            generation.tokenizer is not None, tuple(s.index for s in generation.siblings),
            tuple(map(pack_logprobs, generation.logprobs)),
            tuple(None if told is None else pack_logprobs(told) for told in generation.prompt_logprobs()),
        ),
        core.drafts_of(request_id) if request.num_committed_tokens else None,  # preempted: they are gone
        streams,
    )  # fmt: skip
    handover.hold(core.scheduler, request)
    return Moved(header, rows)


def held(core: EngineCore, request_id: str) -> Generation:
    """The answer that is held for a move; MoveError if there is none of that id."""
    generation = core.generation(request_id)
    if generation is None or generation.request.state is not State.HELD:
        raise MoveError(f"request {request_id!r} is not held here; it was released, resumed or cancelled")
    return generation


# --------------------------------------------------------------------------------------------- there


def admit(core: EngineCore, moved: Moved, on_delta: Tell) -> Generation:
    """Go on with a request of another engine; `on_delta` hears (index of the answer, what is added from here on).

    Everything is checked before anything is changed. Raises MoveMismatch, MoveDamaged, MovedAlready, NoRoom or
    LayoutError, and then this engine is as it was.
    """
    header = moved.header
    if header.ticket in core.admitted:
        raise MovedAlready("the request was admitted here already; release it where it came from")
    _check(core, header)
    moved.check()
    generation = _revive(core, header, on_delta)
    request = generation.request
    core.flush_orders()
    handover.adopt(core.scheduler, request, header.request.num_committed_tokens)
    if request.num_committed_tokens:
        try:
            scatter(core, request, moved)
            handover.publish(core.scheduler, request)
            keep_state(core, request, moved)
        except BaseException:
            handover.let_go(core.scheduler, request)
            raise
    core.enter(generation, header.drafts if _has_draft_rows(core, header) else None)
    core.admitted[header.ticket] = None
    if len(core.admitted) > REMEMBERED_TICKETS:
        del core.admitted[next(iter(core.admitted))]
    return generation


def _check(core: EngineCore, header: Header) -> None:
    """MoveMismatch unless this engine runs that model and can tell what the request wants told."""
    if header.model != core.fingerprint:
        raise MoveMismatch(
            f"the request is of model {header.model}, and this engine runs {core.fingerprint}: other weights. Move it "
            "to an engine of the same checkpoint; if both are the same model in unlike formats, give both one model_id"
        )
    request, answer = header.request, header.answer
    if answer.has_text and core.tokenizer is None:
        raise MoveMismatch("the answer is text, and this engine has no tokenizer.json; copy it beside the weights")
    if not 0 <= request.num_committed_tokens < len(request.tokens):
        raise MoveMismatch(f"{request.num_committed_tokens} rows for {len(request.tokens)} tokens; needed fewer")
    if not 1 <= request.num_prompt_tokens <= len(request.tokens):
        raise MoveMismatch(f"a prompt of {request.num_prompt_tokens} of {len(request.tokens)} tokens; needed 1 or more")
    if len(request.tokens) - request.num_prompt_tokens >= request.max_tokens:
        count = len(request.tokens) - request.num_prompt_tokens
        raise MoveMismatch(f"the answer has {count} tokens of at most {request.max_tokens}; it needs no other engine")
    bad = [t for t in (*request.tokens, *answer.eos_ids) if not 0 <= t < core.spec.vocab_size]
    if bad:
        raise MoveMismatch(f"token {bad[0]} is outside the vocabulary of {core.spec.vocab_size} tokens")
    _check_answer(core, header)
    if request.num_committed_tokens:
        _check_streams(core, header)


def _check_answer(core: EngineCore, header: Header) -> None:
    """What `EngineCore.add` would have refused, or made complete."""
    answer, sampling = header.answer, header.answer.sampling
    needed = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    left_open = [name for name in needed if getattr(sampling, name) is None]
    if left_open:
        raise MoveMismatch(f"the sampling leaves {', '.join(left_open)} open; a sender fills in its defaults")
    bad = [index for index in (answer.index, *answer.siblings) if not 0 <= index < sampling.n]
    if bad:
        raise MoveMismatch(f"answer {bad[0]} of {sampling.n}; needed 0 to {sampling.n - 1}")
    try:
        core.check_sampling(sampling)
        core.matcher(sampling)
    except RequestError as error:
        raise MoveMismatch(f"this engine cannot go on with the request: {error}") from error
    drafts, count = header.drafts, header.request.num_committed_tokens
    if drafts is not None and not (drafts.origin >= 1 and 0 <= drafts.filled <= count):
        raise MoveMismatch(f"drafts from {drafts.origin} to {drafts.filled} for {count} rows; needed some of them")


def _check_streams(core: EngineCore, header: Header) -> None:
    """Every row that the decoder will look at must be there, once; those of MTP layers may be missing."""
    count, sent = header.request.num_committed_tokens, _by_name(header)
    if len({(s.name, s.num_tokens is None) for s in header.streams}) < len(header.streams):
        raise MoveMismatch("rows of a stream were sent twice; needed once")
    states = {s.name: s for s in header.streams if s.num_tokens is not None}
    for stream in core.plan.streams:
        _check_state(stream, states.get(stream.name), core, count)
    for stream in core.plan.streams:
        wanted = [layer for layer in stream.layers if layer < len(core.spec.layers)]
        found = sent.get(stream.name)
        if not set(wanted) <= set(found.layers if found is not None else ()):
            raise MoveMismatch(f"the rows of stream {stream.name!r} are missing for some layer; needed {wanted}")
        if found is None:
            continue
        needed = (stream.family, stream.shape, stream.ratio, *_span(stream, count))
        if (found.family, found.shape, found.ratio, found.first, found.num_rows) != needed:
            raise MoveMismatch(
                f"stream {stream.name!r} was sent as {found.num_rows} rows {list(found.shape)} from {found.first} on; "
                f"needed {needed[-1]} rows {list(stream.shape)} from {needed[-2]} on"
            )


def _check_state(stream: Stream, kept: MovedStream | None, core: EngineCore, count: int) -> None:
    """The state behind a prefix, which lets others resume there."""
    if kept is None or kept.num_tokens is None:
        return
    behind, rows = kept.num_tokens, stream.snapshot_rows
    is_boundary = 0 < behind <= count and behind % core.plan.block_tokens == 0
    if not is_boundary or (kept.shape, kept.first, kept.num_rows) != (stream.shape, behind - rows, rows):
        raise MoveMismatch(
            f"the state behind {behind} tokens was sent as {kept.num_rows} rows {list(kept.shape)} of stream "
            f"{stream.name!r} from {kept.first} on; needed {rows} rows {list(stream.shape)} behind a whole block"
        )


def _span(stream: Stream, num_tokens: int) -> tuple[int, int]:
    """First row and number of rows of a request with so many committed tokens."""
    if stream.family == "history":
        return 0, num_tokens // stream.ratio
    return max(0, num_tokens - stream.lookback), min(num_tokens, stream.lookback)


def _by_name(header: Header) -> dict[str, MovedStream]:
    return {stream.name: stream for stream in header.streams if stream.num_tokens is None}


def _has_draft_rows(core: EngineCore, header: Header) -> bool:
    """Whether the rows of all streams of the MTP layers came along."""
    sent = _by_name(header)
    return all(s.name in sent and set(s.layers) <= set(sent[s.name].layers) for s in core.plan.streams)


def _revive(core: EngineCore, header: Header, on_delta: Tell) -> Generation:
    """The answer as it stood, with all that follows from its tokens made again; and its siblings, if any wait."""
    state, answer = header.request, header.answer

    def generation(index: int, tokens: tuple[int, ...], seed: int) -> Generation:
        request = Request(
            core.new_id(), list(tokens), state.num_prompt_tokens, state.max_tokens, state.priority, state.salt,
            num_cached_tokens=state.num_cached_tokens,
        )  # fmt: skip
        return Generation(
            request, answer.sampling, seed, index, core.tokenizer if answer.has_text else None, answer.eos_ids,
            partial(on_delta, index), matcher=core.matcher(answer.sampling),
        )  # fmt: skip

    first = generation(answer.index, state.tokens, answer.seed)
    prompt = state.tokens[: state.num_prompt_tokens]
    first.siblings = [generation(i, prompt, sample_seed(answer.sampling, i)) for i in answer.siblings]
    told = tuple(map(unpack_logprobs, answer.logprobs))
    before = tuple(None if told is None else unpack_logprobs(told) for told in answer.prompt_logprobs)
    if not first.replay(state.tokens[state.num_prompt_tokens :], told, before):
        raise MoveMismatch("the answer has ended by this engine's tokenizer; both sides need the same tokenizer.json")
    return first
