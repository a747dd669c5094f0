"""Incremental text: exactly the text of the whole, no half characters, stop strings whatever the tokens."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiefsee.errors import InvalidSampling
from tiefsee.text import Detokeniser

# Letters that stop strings and texts share, so that matches and near misses are common.
FEW = st.text(alphabet="ab é🌊", max_size=30)
STOPS = st.lists(st.text(alphabet="ab é🌊", min_size=1, max_size=4), max_size=4)


def feed_all(detokeniser, ids):
    """The pieces up to the end or the stop string."""
    pieces = []
    for token in ids:
        pieces.append(detokeniser.feed(token))
        if detokeniser.stopped_by is not None:
            break
    return [*pieces, detokeniser.flush()]


def bytewise(tokenizer, text):
    """The finest tokens there are: one per byte, which no encoder would choose but a model may."""
    of_byte = {tokenizer.token_bytes(i): i for i in range(300) if len(tokenizer.token_bytes(i)) == 1}
    return [of_byte[bytes([b])] for b in text.encode()]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 129_279), max_size=40), st.booleans())
def test_pieces_are_the_whole_for_any_tokens(tokenizer, ids, skip_special):
    pieces = feed_all(Detokeniser(tokenizer, skip_special=skip_special), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special)


@settings(max_examples=200)
@given(st.text(max_size=40), st.booleans())
def test_never_half_a_character(tokenizer, text, finely):
    ids = bytewise(tokenizer, text) if finely else tokenizer.encode(text, add_bos=False, parse_special=False)
    done = ""
    detokeniser = Detokeniser(tokenizer)
    for token in ids:
        done += detokeniser.feed(token)
        assert text.startswith(done)
    assert done + detokeniser.flush() == text


def test_torn_character_at_the_end_is_replaced_once(tokenizer):
    ids = bytewise(tokenizer, "a🌊")[:-1]
    assert feed_all(Detokeniser(tokenizer), ids) == ["a", "", "", "", "�"]


def earliest_end(text, stops):
    """The definition: the first stop string to be complete, the longest if two end together."""
    ends = [(i + len(s), i, s) for s in stops for i in range(len(text)) if text.startswith(s, i)]
    return min(ends, default=None)


@settings(max_examples=400)
@given(FEW, STOPS, st.booleans(), st.booleans())
def test_stop_strings_do_not_depend_on_tokens(tokenizer, text, stops, include, finely):
    ids = bytewise(tokenizer, text) if finely else tokenizer.encode(text, add_bos=False)
    detokeniser = Detokeniser(tokenizer, stops, include_stop=include)
    pieces = feed_all(detokeniser, ids)
    found = earliest_end(text, stops)
    if found is None:
        assert detokeniser.stopped_by is None
        assert "".join(pieces) == text
    else:
        end, start, stop = found
        assert detokeniser.stopped_by == stop
        assert "".join(pieces) == text[: end if include else start]


@given(FEW, STOPS)
def test_only_possible_stop_strings_are_held_back(tokenizer, text, stops):
    detokeniser = Detokeniser(tokenizer, stops)
    done = ""
    for n, token in enumerate(bytewise(tokenizer, text)):
        done += detokeniser.feed(token)
        if detokeniser.stopped_by is not None:
            return
        held = text.encode()[: n + 1].decode(errors="ignore").removeprefix(done)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_min_tokens_lets_a_stop_string_pass(tokenizer):
    detokeniser = Detokeniser(tokenizer, ["ab"])
    a, b = bytewise(tokenizer, "ab")
    assert detokeniser.feed(a, may_stop=False) == ""
    assert detokeniser.feed(b, may_stop=False) == "ab"
    assert [detokeniser.feed(a), detokeniser.feed(b), detokeniser.stopped_by] == ["", "", "ab"]


def test_specials_are_dropped_or_shown(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("hi", add_bos=False), *tokenizer.eos_ids]
    assert "".join(feed_all(Detokeniser(tokenizer), ids)) == "hi"
    shown = "".join(feed_all(Detokeniser(tokenizer, skip_special=False), ids))
    assert shown.startswith("<｜begin") and shown.endswith("sentence｜>")  # noqa: PT018


@pytest.mark.parametrize("stop", ["\n", [""], [3]])
def test_stop_that_is_no_list_of_texts(tokenizer, stop):
    with pytest.raises(InvalidSampling, match="list of non-empty strings"):
        Detokeniser(tokenizer, stop)


def test_cost_does_not_grow_with_the_answer(tokenizer):
    """45,000 tokens cost microseconds each; decoding a growing text again and again would take hours."""
    detokeniser = Detokeniser(tokenizer, ["never to be seen"])
    ids = tokenizer.encode("The deepest lake on Earth is Baikal. ", add_bos=False) * 5_000
    start = time.perf_counter()
    text = "".join(map(detokeniser.feed, ids))
    assert len(text) > 150_000
    assert (time.perf_counter() - start) / len(ids) < 100e-6
