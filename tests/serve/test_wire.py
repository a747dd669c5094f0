"""Frames between the two processes: whole however they are cut, and never believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiefsee.engine.constraint import Constraint
from tiefsee.engine.delta import TokenLogprobs
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import RequestError, WireError
from tiefsee.serve import wire
from tiefsee.serve.pieces import Pieces
from tiefsee.serve.wire import Add, Ask, Cancel, Log, Piece, Stop, Task, Turn, add_request, frame, task_of

LOGPROBS = st.builds(
    TokenLogprobs, st.integers(0, 9), st.floats(-50, 0), st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 9), st.floats(-50, 0)), max_size=2).map(tuple),
)  # fmt: skip
PIECES = st.builds(
    Piece, st.integers(0, 2), st.integers(0, 1), st.lists(st.integers(0, 2**31), max_size=3), st.text(max_size=5),
    st.sampled_from([None, None, "stop", "length"]), st.none() | st.lists(LOGPROBS, max_size=2),
)  # fmt: skip
EVENTS = st.one_of(
    st.builds(Turn, st.lists(st.integers(0, 9)), pieces=st.lists(PIECES, max_size=4)),
    st.builds(Log, st.integers(0, 50), st.text()),
)
COMMANDS = st.one_of(st.builds(Cancel, st.integers(0, 9)), st.builds(Ask, st.integers(0, 9)), st.just(Stop()))


@given(events=st.lists(EVENTS, max_size=5), cuts=st.lists(st.integers(1, 40), max_size=60))
def test_messages_arrive_whole_however_they_are_cut(events, cuts):
    data, frames, found = b"".join(bytes(frame(event)) for event in events), wire.events(), []
    for cut in [*cuts, len(data)]:
        found += frames.feed(data[:cut])
        data = data[cut:]
    assert found == events


@given(commands=st.lists(COMMANDS, max_size=3), junk=st.binary(min_size=1, max_size=60))
def test_junk_after_messages_is_an_error_or_an_unfinished_frame(commands, junk):
    frames, found = wire.commands(), []
    try:
        for command in frames.feed(b"".join(bytes(frame(c)) for c in commands) + junk):
            found.append(command)
    except WireError:
        pass
    assert found[: len(commands)] == commands


def test_a_frame_that_is_too_long_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="claims"):
        list(wire.events().feed((wire.MAX_FRAME_BYTES + 1).to_bytes(4, "little")))
    with pytest.raises(WireError, match="a frame holds at most"):
        frame(Log(1, "x" * (wire.MAX_FRAME_BYTES + 1)))


def test_a_task_comes_back_as_it_was():
    sampling = Sampling(
        max_tokens=3, temperature=0.5, stop=("a", "b"), logit_bias={3: 1.5}, seed=-(2**63), logprobs=2,
        prompt_logprobs=1, constraint=Constraint("regex", "a+"),
    )  # fmt: skip
    task = Task([1, 2, 3], sampling, -4, "salt")
    (add,) = wire.commands().feed(bytes(frame(add_request(7, task))))
    assert isinstance(add, Add)
    assert task_of(add) == task


@pytest.mark.parametrize("task", [Task([2**70], Sampling()), Task([1], Sampling(stop=("\ud800",)))])
def test_what_msgpack_cannot_say_refuses_one_request(task):
    with pytest.raises(RequestError, match="cannot be sent"):
        add_request(1, task)


@given(pieces=st.lists(PIECES, max_size=12), reads=st.lists(st.booleans(), max_size=12))
def test_joined_pieces_lose_nothing(pieces, reads):
    """Whatever the reader's pace, each answer's tokens, text, log probabilities and ending arrive in order."""

    def told(items):
        found = {}
        for piece in items:
            tokens, text, logprobs, ending = found.get((piece.request, piece.index), ([], "", [], None))
            joined = [*tokens, *piece.token_ids], text + piece.text, [*logprobs, *(piece.logprobs or [])]
            found[piece.request, piece.index] = (*joined, ending or piece.finish_reason)
        return found

    expected = told(pieces)
    held, out = Pieces(), []
    for piece, read in zip(pieces, [*reads, *[False] * len(pieces)], strict=False):
        held.add(piece)
        if read:
            out.append(held.take())
    out += held.take_all()
    assert held.num_tokens == 0
    assert told(out) == expected
