"""The vocabulary: BOS once, control tokens only where asked for, bytes of a token, clear errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiefsee.errors import ConfigError, InvalidToken, ModelNotFound
from tiefsee.text import Tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def test_bos_comes_once(tokenizer):
    ids = tokenizer.encode("Hello")
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.encode(BOS + "Hello") == ids
    assert tokenizer.encode("Hello", add_bos=False) == ids[1:]


def test_control_tokens_only_where_asked_for(tokenizer):
    text = "Say <｜User｜> and </think>"
    special = {tokenizer.token_id("<｜User｜>"), tokenizer.token_id("</think>")}
    assert special <= set(tokenizer.encode(text))
    plain = tokenizer.encode(text, add_bos=False, parse_special=False)
    assert not special & set(plain)
    assert tokenizer.decode(plain) == text


def test_ranges_are_special_and_the_rest_is_not(tokenizer):
    text = "<｜User｜>I am <｜User｜><nonsense>"
    ids = tokenizer.encode_ranges(text, [(0, 8), (21, 31)])
    assert ids.count(tokenizer.token_id("<｜User｜>")) == 1
    assert ids[0] == tokenizer.token_id("<｜User｜>")
    assert tokenizer.decode(ids, skip_special=False) == text
    whole = tokenizer.encode("I am <｜User｜><nonsense>", add_bos=False, parse_special=False)
    assert ids[1:] == whole  # a range that is no token does not cut the text


@settings(max_examples=150)
@given(st.text())
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


@settings(max_examples=150)
@given(st.lists(st.integers(0, 129_279), max_size=30))
def test_bytes_of_tokens_are_the_text(tokenizer, ids):
    joined = b"".join(tokenizer.token_bytes(i) for i in ids)
    assert joined.decode(errors="replace") == tokenizer.decode(ids, skip_special=False)


def test_padding_of_the_vocabulary_has_no_text(tokenizer):
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.decode([10**6]) == ""
    with pytest.raises(InvalidToken, match="-1"):
        tokenizer.decode([-1])


def test_end_of_answer_ids(tokenizer, tokenizer_json):
    eos = tokenizer.token_id(EOS)
    assert tokenizer.eos_ids == (eos,)
    read = Tokenizer.from_files(tokenizer_json, config={"eos_token_id": 5})
    assert read.eos_ids == (5,)
    read = Tokenizer.from_files(tokenizer_json, config={"eos_token_id": 5}, generation_config={"eos_token_id": [1, 7]})
    assert read.eos_ids == (1, 7)
    with pytest.raises(ConfigError, match="eos_token_id"):
        Tokenizer.from_files(tokenizer_json, config={"eos_token_id": "x"})


def test_no_bos_token_is_said(tokenizer_json):
    bare = Tokenizer.from_files(tokenizer_json)
    assert bare.encode("a") == bare.encode("a", add_bos=False)
    with pytest.raises(ConfigError, match="names no BOS"):
        bare.encode("a", add_bos=True)


def test_faults_of_files(tmp_path):
    with pytest.raises(ModelNotFound, match="original release"):
        Tokenizer.from_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": ')
    with pytest.raises(ConfigError, match="download it again"):
        Tokenizer.from_folder(tmp_path)
    path.write_text(json.dumps(word_level()))
    with pytest.raises(ConfigError, match="byte-level"):
        Tokenizer.from_folder(tmp_path)


def word_level() -> dict:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel

    return json.loads(Backend(WordLevel({"a": 0}, unk_token="a")).to_str())
