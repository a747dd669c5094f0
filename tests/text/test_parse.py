"""Answers back: reasoning, text and tool calls, however the text is cut; nothing is lost, nothing is made up."""

from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.answers import parse, ranges_of
from tiefsee.text import CallBegin, CallEnd, ChatPrompt, Detokeniser, Text
from tiefsee.text.control import ANSWER_TOKENS, Marker, char
from tiefsee.text.parse import PlainParser
from tiefsee.text.parse_dsml import DsmlParser
from tiefsee.text.parse_fenced import FencedCallParser

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, DONE, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
D = "｜DSML｜"


def parser_of(kind: str, *, thinking: bool = False, continues: bool = False, tokenizer=None):
    prompt = ChatPrompt("", (), starts_in_reasoning=thinking, continues=continues)
    numbers = count()
    ids = {"make_id": lambda: f"call_{next(numbers)}"}
    return {
        "plain": lambda: PlainParser(prompt, tokenizer),
        "v3": lambda: FencedCallParser(prompt, tokenizer, fenced=True, **ids),
        "v3.1": lambda: FencedCallParser(prompt, tokenizer, fenced=False, **ids),
        "v3.2": lambda: DsmlParser(prompt, tokenizer, block="function_calls", **ids),
        "v4": lambda: DsmlParser(prompt, tokenizer, block="tool_calls", **ids),
    }[kind]()


def dsml(*calls: tuple[str, list[tuple[str, str, str]]], block="tool_calls") -> str:
    body = ""
    for name, parameters in calls:
        body += f'<{D}invoke name="{name}">\n'
        body += "".join(f'<{D}parameter name="{n}" string="{s}">{v}</{D}parameter>\n' for n, s, v in parameters)
        body += f"</{D}invoke>\n"
    return f"<{D}{block}>\n{body}</{D}{block}>"


V3 = (
    f"{BEGIN}{CALL}function{SEP}f\n```json\n"
    + '{"a": 1}'
    + f"\n```{DONE}\n{CALL}function{SEP}g\n```json\n{{}}\n```{DONE}{END}"
)
V31 = f"{BEGIN}{CALL}f{SEP}" + '{"a": 1}' + f"{DONE}{CALL}g{SEP}{{}}{DONE}{END}"
V4 = dsml(("f", [("a", "false", "1")]), ("g", []))
V32 = V4.replace("tool_calls", "function_calls").replace('"g">\n', '"g">\n\n')
WHOLE = {"v3": V3, "v3.1": V31, "v3.2": "\n\n" + V32, "v4": "\n\n" + V4}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("told", [True, False], ids=["ranges", "spelling"])
def test_two_calls_after_reasoning_and_text(kind, told):
    text = "why\n</think>\n\nLook:" + WHOLE[kind]
    answer = parse(parser_of(kind, thinking=True), text, ranges_of(text) if told else None)
    assert answer.reasoning == "why\n"
    assert answer.text == "Look:"
    assert [(c.id, c.name, json.loads(c.arguments), c.complete) for c in answer.calls] == [
        ("call_0", "f", {"a": 1}, True),
        ("call_1", "g", {}, True),
    ]


@pytest.mark.parametrize("kind", WHOLE)
def test_calls_end_an_unfinished_reasoning(kind):
    """As DeepSeek's own parser has it."""
    answer = parse(parser_of(kind, thinking=True), "think " + WHOLE[kind].strip())
    assert (answer.reasoning, answer.text, len(answer.calls)) == ("think ", "", 2)


@pytest.mark.parametrize("kind", WHOLE)
def test_what_a_model_spells_is_no_control_token(kind, tokenizer):
    """It quotes its own format out of ordinary tokens."""
    text = "</think> is how" + WHOLE[kind]
    assert parse(parser_of(kind, thinking=True, tokenizer=tokenizer), text, []).reasoning == text
    answer = parse(parser_of(kind, tokenizer=tokenizer), text, [])
    assert (answer.text, answer.calls) == (text, ())


def test_a_token_that_the_vocabulary_lacks_is_known_by_its_spelling(tokenizer):
    class Without:
        def token_id(self, token):
            return None if token == D else tokenizer.token_id(token)

    answer = parse(parser_of("v4", tokenizer=Without()), "Look:\n\n" + V4, [])
    assert len(answer.calls) == 2
    assert parse(parser_of("v4", thinking=True, tokenizer=Without()), "a</think>b", []).reasoning == "a</think>b"


def test_strings_stream_and_are_escaped():
    value = 'say "hi"\n\\ <b> </x> é 🙂\t'
    parser = parser_of("v4")
    pieces = []
    for letter in dsml(("f", [("t", "true", value), ("u", "true", "")])):
        pieces += parser.feed(letter)
    assert sum(type(piece).__name__ == "CallArguments" for piece in pieces) > len(value) / 2
    assert json.loads("".join(p.text for p in pieces if type(p).__name__ == "CallArguments")) == {"t": value, "u": ""}


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        ("1", '{"a": 1}'),
        (" null ", '{"a":  null }'),
        ('{"b": [1, {"c": "}"}]}', '{"a": {"b": [1, {"c": "}"}]}}'),
        ('"quoted"', '{"a": "quoted"}'),
        ("hello", '{"a": "hello"}'),  # no JSON: a string
        ("NaN", '{"a": "NaN"}'),
        ("", '{"a": ""}'),
    ],
)
def test_values_that_are_no_strings(value, arguments):
    answer = parse(parser_of("v4"), dsml(("f", [("a", "false", value)])))
    assert (answer.calls[0].arguments, answer.calls[0].complete) == (arguments, True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("v4", f"a <{D}tool_calls>\njunk"),
        ("v4", f"<{D}tool_calls>\n</{D}tool_calls>"),
        ("v4", f"a\n\n<{D}invoke name=\"f\">"),
        ("v4", f"a\n\n<{D}tool_calls>\n<{D}invoke name=\"\">"),
        ("v4", f"a\n\n<{D}tool_calls>\n<{D}inv"),
        ("v4", "a <b \n\n<"),
        ("v3.2", V4),
        ("v3", V31),
        ("v3.1", f"{BEGIN}{CALL}{SEP}"),
        ("v3.1", f"{CALL}f{SEP}{{}}{DONE}"),
        ("plain", V4),
    ],
)  # fmt: skip
def test_malformed_calls_are_text(kind, text):
    answer = parse(parser_of(kind), text)
    assert (answer.text, answer.calls) == (text, ())


@pytest.mark.parametrize(
    ("kind", "text", "arguments", "after"),
    [
        ("v4", V4[: V4.index("1<")], '{"a": ', ""),  # cut off
        ("v4", dsml(("f", [("t", "true", "abc")])).partition("</")[0], '{"t": "abc', ""),
        ("v4", V4[: V4.index("</｜DSML｜invoke")] + "what?", '{"a": 1', "\nwhat?"),  # broken
        ("v4", V4.replace('string="false"', 'string="no"')[:90] + "x", "", None),
        ("v4", dsml(("f", [("a", "false", "[1, ")])), '{"a": [1, }', ""),  # an array that is none
        ("v3.1", V31[: V31.index("}")], '{"a": 1', ""),
        ("v3.1", f"{BEGIN}{CALL}f{SEP}nonsense{DONE}{END}", "nonsense", ""),
        ("v3", V3[: V3.index("}\n`") + 4], '{"a": 1}\n``', ""),
    ],
)
def test_calls_that_break_are_marked(kind, text, arguments, after):
    answer = parse(parser_of(kind), text)
    assert answer.calls[0].arguments == arguments
    assert not answer.calls[0].complete
    assert after is None or answer.text == after


@pytest.mark.parametrize("text", [V31.replace(DONE + END, END), V31.replace(DONE, "")])
def test_a_forgotten_end_of_a_call(text):
    assert [c.complete for c in parse(parser_of("v3.1"), text).calls] == [True, True]


def test_text_after_calls_is_kept():
    assert parse(parser_of("v4"), V4 + "\n\nDone.").text == "\n\nDone."
    assert parse(parser_of("v3.1"), V31 + "Done.").text == "Done."


def test_pieces_come_in_order():
    pieces = parser_of("v3.1").feed("a" + V31 + "b")
    assert [type(p).__name__ for p in pieces] == [
        "Text", "CallBegin", "CallArguments", "CallEnd", "CallBegin", "CallArguments", "CallEnd", "Text",
    ]  # fmt: skip
    assert pieces[0] == Text("a")
    assert pieces[1] == CallBegin(0, "call_0", "f")
    assert pieces[6] == CallEnd(1, complete=True)


def test_a_continued_answer_keeps_its_first_newlines():
    assert parse(parser_of("v4", continues=True), "\n\nb").text == "\n\nb"
    assert parse(parser_of("v4"), "\n\nb").text == "b"
    assert parse(parser_of("v4", continues=True), "<think>b").text == "<think>b"


ATOMS = st.sampled_from(
    [*ANSWER_TOKENS, "<", "</", ">", "\n", "\n\n", " ", "a", "é", "function", "```json", "```", "tool_calls>",
     '{"a": 1}',
     'invoke name="f">', 'parameter name="a" string="true">', 'parameter name="b" string="false">', "parameter>",
     "invoke>", "[1]", "\\", '"', V3, V31, V4, V32, V4[:70], V4[40:], V3[:40], V3[30:]]
)  # fmt: skip


@settings(max_examples=250)
@given(st.lists(ATOMS, max_size=14), st.sampled_from(["plain", *WHOLE]), st.booleans(), st.data())
def test_pieces_do_not_matter(tokenizer, atoms, kind, thinking, data):
    text = "".join(atoms)
    ranges = data.draw(st.sampled_from([None, ranges_of(text), ranges_of(text)[::2]]))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    whole = parse(parser_of(kind, thinking=thinking, tokenizer=tokenizer), text, ranges)
    assert parse(parser_of(kind, thinking=thinking, tokenizer=tokenizer), text, ranges, cuts) == whole
    letters = parse(parser_of(kind, thinking=thinking, tokenizer=tokenizer), text, ranges, range(len(text)))
    assert letters == whole
    assert not any("\udc80" <= c <= "\udcff" for c in repr(whole) + whole.text + whole.reasoning)


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*ANSWER_TOKENS, "<", "a", "｜", "think>", "\n", "é"]), max_size=10), st.data())
def test_nothing_is_lost_without_calls(tokenizer, atoms, data):
    """Every letter of an answer that has no calls comes back, but for newlines that separate."""
    text = "x" + "".join(atoms)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert parse(parser_of("plain", continues=True), text, None, cuts).text == text


def test_tokens_through_the_detokeniser(tokenizer):
    """From token ids to pieces, with a stop string that makes it hold text back."""
    text = "a</think>b <think> c" + V4
    ids = tokenizer.encode_ranges(text, ranges_of(text)[:1] + ranges_of(text)[2:])  # <think> is spelled out
    detokeniser = Detokeniser(tokenizer, ["</thinking", "zzz", "｜DSML｜x"])
    parser = parser_of("v4", thinking=True, tokenizer=tokenizer)
    pieces, told, num_ranges = [], 0, 0
    for piece in [*(detokeniser.feed(i) for i in ids), detokeniser.flush()]:
        new = [r for r in detokeniser.special_ranges[num_ranges:] if r[1] <= told + len(piece)]
        num_ranges += len(new)
        pieces += parser.feed(piece, [(a - told, b - told) for a, b in new])
        told += len(piece)
    from tiefsee.text import join

    answer = join([*pieces, *parser.flush()])
    assert (answer.reasoning, answer.text, len(answer.calls)) == ("a", "b <think> c", 2)


@given(st.lists(st.sampled_from(["<think>", "</think>", "é", "a"]), max_size=8), st.sampled_from(["ink>a", "</", "aé"]))
def test_ranges_survive_stop_strings(tokenizer, atoms, stop):
    text = "".join(atoms)
    detokeniser = Detokeniser(tokenizer, [stop])
    out = ""
    for token in tokenizer.encode_ranges(text, ranges_of(text)):
        before = len(out)
        out += detokeniser.feed(token)
        if detokeniser.stopped_by:
            break
        for start, end in detokeniser.special_ranges:
            assert end <= before or start >= len(out) or (before <= start and end <= len(out))
    out += detokeniser.flush()
    assert all(text[a:b] in ("<think>", "</think>") for a, b in detokeniser.special_ranges)
    assert text.startswith(out)


def test_a_special_token_of_the_format_is_kept(tokenizer_json, tmp_path):
    from tiefsee.text import Tokenizer

    data = json.loads(tokenizer_json.read_text())
    for token in data["added_tokens"]:
        token["special"] = True
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    tokenizer = Tokenizer.from_files(path)
    ids = tokenizer.encode("a</think><｜User｜>b")
    detokeniser = Detokeniser(tokenizer)
    assert "".join(map(detokeniser.feed, ids)) == tokenizer.decode(ids) == "a</think>b"
    assert detokeniser.special_ranges == [(1, 9)]


def test_marker_marks_only_what_is_told(tokenizer):
    marker = Marker(ANSWER_TOKENS, tokenizer)
    assert marker.feed("<think><think>", [(7, 14)]) == "<think>" + char("<think>")
