"""What a constrained answer may be: accepted by llguidance on real vocabularies if right, refused if wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text import templates
from tests.text.answers import CLOCK, WEATHER, encode, parse, ranges_of
from tests.text.schemas import OBJECTS, VALUES
from tests.text.test_parse import BEGIN, CALL, DONE, END, SEP, dsml
from tiefsee.errors import ConfigError, RequestError
from tiefsee.text import Conversation, ResponseFormat
from tiefsee.text.chat import RawFormat
from tiefsee.text.encoding_v4 import V4Format
from tiefsee.text.encoding_v32 import V32Format
from tiefsee.text.lark import lark_regex, rename_start
from tiefsee.text.template import TemplateFormat

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
FORMATS = {
    "v3": TemplateFormat(templates.V3_TOOLS, BOS, EOS),
    "v3.1": TemplateFormat(templates.V31, BOS, EOS),
    "v3.2": V32Format(),
    "v4": V4Format(),
}
ASK = Conversation(({"role": "user", "content": "How is it?"},), tools=(WEATHER, CLOCK))
SWITCHED = ["v3.1", "v3.2", "v4"]


def write_calls(kind: str, *calls: tuple[str, dict]) -> str:
    """Tool calls as the model of a format writes them."""
    if kind in ("v3.2", "v4"):
        forms = [(name, [form(k, v) for k, v in arguments.items()]) for name, arguments in calls]
        return "\n\n" + dsml(*forms, block="tool_calls" if kind == "v4" else "function_calls")
    if kind == "v3.1":
        return BEGIN + "".join(f"{CALL}{name}{SEP}{to_json(a)}{DONE}" for name, a in calls) + END
    bodies = [f"{CALL}function{SEP}{name}\n```json\n{to_json(a)}\n```{DONE}" for name, a in calls]
    return BEGIN + "\n".join(bodies) + END


def form(name: str, value) -> tuple[str, str, str]:
    return (name, "true", value) if isinstance(value, str) else (name, "false", to_json(value))


def to_json(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def ask_of(kind: str) -> Conversation:
    """Without reasoning; V3 has no switch for it."""
    return replace(ASK, thinking=None if kind == "v3" else False)


def grammar_of(kind: str, tokenizer, conversation: Conversation) -> str | None:
    prompt = FORMATS[kind].render(conversation.messages, thinking=conversation.thinking, tools=conversation.tools)
    return FORMATS[kind].grammar(conversation, prompt, tokenizer)


def accepts(guide, kind: str, conversation: Conversation, text: str, ranges=None) -> bool:
    grammar = grammar_of(kind, guide.tokenizer, conversation)
    assert grammar is not None
    return guide.accepts(grammar, encode(guide.tokenizer, text, ranges))


GOOD = ("weather", {"place": "Bonn <3", "days": 3})
FULL = ("weather", {"place": "", "days": 14, "units": "metric", "at": [7, 50.7]})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("vocabulary", ["released", "bundled"])
def test_auto(guide, kind, vocabulary):
    g, ask = guide[vocabulary], ask_of(kind)
    right = [
        "",
        "It is fine.",
        "a < b\n\n<",
        write_calls(kind, GOOD),
        "Let me see." + write_calls(kind, GOOD, ("clock", {}), FULL),
    ]
    for text in right:
        assert accepts(g, kind, ask, text), text
    wrong = [
        write_calls(kind, ("weather", {"place": "Bonn"})),  # days are required
        write_calls(kind, ("weather", {"place": "Bonn", "days": 15})),
        write_calls(kind, ("weather", {"place": 1, "days": 3})),
        write_calls(kind, ("weather", {"place": "Bonn", "days": 3, "units": "miles"})),
        write_calls(kind, ("weather", {"place": "Bonn", "days": 3, "at": [1, 2, 3]})),
        write_calls(kind, ("wether", {"place": "Bonn", "days": 3})),
        write_calls(kind, ("clock", {"zone": "CET"})),
        write_calls(kind, GOOD)[:-5],
        write_calls(kind, GOOD) + "more",
    ]  # fmt: skip
    for text in wrong:
        assert not accepts(g, kind, ask, text), text


@pytest.mark.parametrize("kind", FORMATS)
def test_a_call_cannot_begin_out_of_ordinary_tokens_and_text_may_spell_one(guide, kind):
    ask = ask_of(kind)
    text = write_calls(kind, GOOD)
    assert accepts(guide["bundled"], kind, ask, text, ranges=[])  # it is just text, and is parsed as text
    assert not accepts(guide["bundled"], kind, ask, text, ranges=ranges_of(text)[:-1])


@pytest.mark.parametrize("kind", FORMATS)
def test_none_required_named_single(guide, kind):
    g, ask = guide["bundled"], ask_of(kind)
    one, two = write_calls(kind, GOOD), write_calls(kind, GOOD, ("clock", {}))
    none = replace(ask, tool_choice="none")
    assert accepts(g, kind, none, "No.")
    assert not accepts(g, kind, none, one)
    required = replace(ask, tool_choice="required")
    assert accepts(g, kind, required, two)
    assert not accepts(g, kind, required, "No.")
    assert not accepts(g, kind, required, "")
    named = replace(ask, tool_choice="named", tool_name="clock")
    assert accepts(g, kind, named, write_calls(kind, ("clock", {})))
    assert not accepts(g, kind, named, one)
    single = replace(ask, parallel_tool_calls=False)
    assert accepts(g, kind, single, one)
    assert not accepts(g, kind, single, two)
    with pytest.raises(RequestError, match="'wether', but the tools are weather, clock"):
        grammar_of(kind, g.tokenizer, replace(ask, tool_choice="named", tool_name="wether"))


@pytest.mark.parametrize("kind", SWITCHED)
def test_reasoning_comes_first(guide, kind):
    g, ask = guide["bundled"], replace(ASK, thinking=True)
    call = write_calls(kind, GOOD)
    assert accepts(g, kind, ask, "hm\n</think>\n\nFine.")
    assert accepts(g, kind, replace(ask, tool_choice="required"), "hm</think>" + call)
    assert not accepts(g, kind, replace(ask, tool_choice="required"), "hm</think>no")
    assert not accepts(g, kind, ask, "hm")
    schema = replace(ask, tools=(), response_format=ResponseFormat("json_schema", '{"type": "integer"}'))
    assert accepts(g, kind, schema, "hm</think>12")
    assert accepts(g, kind, schema, "hm\n</think>\n\n12")
    assert not accepts(g, kind, schema, "hm</think>a")
    assert not accepts(g, kind, schema, "12")


def test_the_first_r1_opens_its_reasoning_itself(guide):
    chat = TemplateFormat(templates.R1_FIRST, BOS, EOS)
    ask = Conversation(ASK.messages, response_format=ResponseFormat("json_object"))
    grammar = chat.grammar(ask, chat.render(ask.messages), guide["bundled"].tokenizer)
    for text, right in (
        ("<think>\nhm</think>\n\n{}", True),
        ('{"a": [1, null]}', True),
        ("<think>{}", False),
        ("[]", False),
    ):
        assert guide["bundled"].accepts(grammar, encode(guide["bundled"].tokenizer, text)) == right


CLIENTS_GRAMMAR = 'start: restart "!" // start\nrestart: "start" | /start/ "ed"'


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        (ResponseFormat("json_object"), '{"a": {"b": [1, "x"]}}', "[1]"),
        (ResponseFormat("json_object"), "{}", '{ "a" :1}'),  # one way to space it, so it cannot run on
        (ResponseFormat("regex", r"\d{2}/[a-z]+\n?"), "12/ab\n", "12ab"),
        (
            ResponseFormat("grammar", CLIENTS_GRAMMAR),
            "started!",
            "start",
        ),
        (ResponseFormat("json_schema", "true"), "[1]", "[1"),
    ],
)
def test_response_formats(guide, wanted, right, wrong):
    ask = Conversation(ASK.messages, response_format=wanted, thinking=False)
    assert accepts(guide["bundled"], "v4", ask, right)
    assert not accepts(guide["bundled"], "v4", ask, wrong)


def test_json_or_calls(guide):
    ask = replace(ASK, thinking=False, response_format=ResponseFormat("json_object"))
    for kind in SWITCHED:
        assert accepts(guide["bundled"], kind, ask, "{}")
        assert accepts(guide["bundled"], kind, ask, write_calls(kind, GOOD))
        assert not accepts(guide["bundled"], kind, ask, "no")


def test_free_answers_have_no_grammar(bundled_tokenizer):
    assert grammar_of("v4", bundled_tokenizer, Conversation(ASK.messages)) is None
    assert RawFormat().grammar(Conversation(ASK.messages), RawFormat().render(ASK.messages), bundled_tokenizer) is None


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        (Conversation(ASK.messages, response_format=ResponseFormat("json_schema", "{")), "no JSON"),
        (Conversation(ASK.messages, response_format=ResponseFormat("json_schema", "3")), "needed is a JSON schema"),
        (Conversation(ASK.messages, response_format=ResponseFormat("grammar", "a: /b/")), "no rule `start`"),
        (replace(ASK, tools=({"function": {"name": "f", "parameters": [1]}},)), "JSON schema of an object"),
        (replace(ASK, tools=({"function": {"name": 'f"', "parameters": None}},)), "quotes"),
        (
            replace(ASK, tools=({"function": {"name": "f", "strict": True, "parameters": {"minProperties": 1}}},)),
            "minProperties of all arguments",
        ),
        (
            replace(
                ASK, tools=({"function": {"name": "f", "parameters": {"properties": {"a": {"$ref": "http://x"}}}}},)
            ),
            "only references inside",
        ),
    ],
)
def test_what_cannot_be_enforced_is_said(bundled_tokenizer, conversation, words):
    with pytest.raises(RequestError, match=words):
        FORMATS["v4"].grammar(conversation, FORMATS["v4"].render(ASK.messages), bundled_tokenizer)


def test_a_vocabulary_without_the_tokens_is_said(bundled_tokenizer):
    class Bare:
        control_ids = frozenset()

        def token_id(self, token):
            return None

    with pytest.raises(ConfigError, match="original release"):
        grammar_of("v4", Bare(), ASK)


def tool_of(schema: dict) -> dict:
    return {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60)
@given(case=OBJECTS)
def test_arguments_that_fit_are_accepted_and_parsed_back(guide, kind, case):
    schema, value = case
    ask = replace(ask_of(kind), tools=(tool_of(schema),), tool_choice="required")
    text = write_calls(kind, ("f", value))
    assert accepts(guide["bundled"], kind, ask, text)
    prompt = FORMATS[kind].render(ask.messages, tools=ask.tools, thinking=ask.thinking)
    answer = parse(FORMATS[kind].parser(prompt, tokenizer=guide["bundled"].tokenizer), text, ranges_of(text))
    assert json.loads(answer.calls[0].arguments) == value
    assert answer.calls[0].complete


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=50)
@given(case=OBJECTS, random=st.randoms(use_true_random=False))
def test_arguments_that_are_allowed_fit(guide, kind, case, random):
    """At infinite temperature: whatever ends is a call whose arguments are valid."""
    ask = replace(
        ASK, tools=(tool_of(case[0]),), tool_choice="named", tool_name="f", thinking=None if kind == "v3" else False
    )
    g = guide["bundled"]
    ids = g.sample(grammar_of(kind, g.tokenizer, ask), random)
    assert ids is not None, "it did not end"
    answer = parse_ids(FORMATS[kind], ask, g.tokenizer, ids)
    assert len(answer.calls) == 1, answer
    assert answer.calls[0].complete
    jsonschema.validate(json.loads(answer.calls[0].arguments), case[0])


@settings(max_examples=60)
@given(case=VALUES, random=st.randoms(use_true_random=False))
def test_responses_that_are_allowed_fit(guide, case, random):
    schema, value = case
    g = guide["bundled"]
    ask = Conversation(ASK.messages, response_format=ResponseFormat("json_schema", json.dumps(schema)), thinking=False)
    assert accepts(g, "v4", ask, json.dumps(value, ensure_ascii=False))
    ids = g.sample(grammar_of("v4", g.tokenizer, ask), random)
    assert ids is not None, "it did not end"
    jsonschema.validate(json.loads(g.tokenizer.decode(ids)), schema)


def parse_ids(chat, conversation: Conversation, tokenizer, ids):
    """From ids to the answer, the way of the engine."""
    from tiefsee.text import Detokeniser

    detokeniser = Detokeniser(tokenizer)
    text = "".join(map(detokeniser.feed, ids)) + detokeniser.flush()
    prompt = chat.render(conversation.messages, tools=conversation.tools, thinking=conversation.thinking)
    return parse(chat.parser(prompt, tokenizer=tokenizer), text, detokeniser.special_ranges)


INT, TEXT, BOOL = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
NODE = {"type": "object", "properties": {"v": INT, "l": {"$ref": "#/$defs/node"}}, "required": ["v"]}
NOTE = {"type": ["string", "null"], "maxLength": 3}
TREE = {
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/node"}, "note": NOTE},
    "required": ["tree"],
    "$defs": {"node": NODE},
}
EITHER = {"anyOf": [{"required": ["a"], "properties": {"a": INT}}, {"properties": {"b": TEXT}, "required": ["b"]}]}


def only(**schema) -> dict:
    return {"properties": {"a": schema}}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (TREE, {"tree": {"v": 1, "l": {"v": 2}}}, {"tree": {"l": {"v": 2}}}),
        (TREE, {"note": None, "tree": {"v": 1}}, {"tree": {"v": 1}, "note": "long"}),
        (EITHER, {"b": "x"}, {"c": 1}),
        ({"allOf": [{"properties": {"a": INT}}, {"required": ["a"]}]}, {"a": 1}, {}),
        ({"type": "object"}, {"x": 1, "y": "z"}, None),
        ({"type": "object", "additionalProperties": INT}, {"x": 1}, {"x": "a"}),
        ({**only(**INT), "additionalProperties": BOOL}, {"a": 1, "b": True}, {"a": True}),
        ({**only(**INT), "required": ["b"]}, {"b": "anything"}, {"a": 1}),
        (only(), {"a": "text"}, {"b": 1}),
        (only(const="x"), {"a": "x"}, {"a": "y"}),
        (only(type=["string", "integer"]), {"a": 5}, {"a": [5]}),
        (only(type="string", pattern="b"), {"a": "abc\n"}, {"a": "ac"}),
        (only(type="string", pattern="b|c"), {"a": "xc"}, {"a": "x"}),
        (only(type="string", pattern="^(a|b)+$", maxLength=2), {"a": "ab"}, {"a": "aba"}),
        (only(type="string", pattern=r"^\$\d+$"), {"a": "$5"}, {"a": "5"}),
        (only(type="string", pattern=r"^/[^/\]]+$"), {"a": "/x"}, {"a": "/]"}),
        (only(type="string", format="uri"), {"a": "any text"}, None),  # a note, unless strict
        ({"properties": {"a": TEXT, "b": TEXT}, "required": ["a", "b"]}, {"b": "1", "a": "2"}, {"a": "1"}),
    ],
)
def test_schemas_written_parameter_by_parameter(guide, schema, right, wrong):
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    ask = replace(ASK, tools=(tool,), tool_choice="required", thinking=False)
    assert accepts(guide["bundled"], "v4", ask, write_calls("v4", ("f", right)))
    if wrong is not None:
        assert not accepts(guide["bundled"], "v4", ask, write_calls("v4", ("f", wrong)))


def test_a_parameter_comes_once(guide):
    text = "\n\n" + dsml(("clock", [("a", "true", "1"), ("a", "true", "2")]))
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"properties": {"a": {"type": "string"}}}}}
    assert not accepts(guide["bundled"], "v4", replace(ASK, tools=(tool,), thinking=False), text)


def test_strings_that_no_regex_holds_are_written_as_json(guide):
    schema = {"properties": {"a": {"type": "string", "format": "date"}}}
    ask = replace(ASK, tools=(tool_of(schema),), tool_choice="required", thinking=False)
    quoted = "\n\n" + dsml(("f", [("a", "false", '"2026-01-31"')]))
    assert accepts(guide["bundled"], "v4", ask, quoted)
    assert not accepts(guide["bundled"], "v4", ask, quoted.replace("31", "41"))
    assert not accepts(guide["bundled"], "v4", ask, write_calls("v4", ("f", {"a": "2026-01-31"})))


def test_many_parameters_keep_their_order(guide):
    names = [f"p{n}" for n in range(70)]
    schema = {"properties": {name: {"type": "boolean"} for name in names}, "required": ["p3", "p60"]}
    ask = replace(ASK, tools=(tool_of(schema),), tool_choice="required", thinking=False)
    assert accepts(guide["bundled"], "v4", ask, write_calls("v4", ("f", {"p3": True, "p60": False})))
    assert not accepts(guide["bundled"], "v4", ask, write_calls("v4", ("f", {"p3": True})))


def test_pieces_of_lark():
    assert lark_regex(r"a/b\/c") == r"/a\/b\/c/"
    source = 'start: "start" /start/ start2 | start // start\n'
    assert rename_start(source) == 'client_start: "start" /start/ start2 | client_start // start\n'
