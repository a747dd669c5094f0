"""Answers under a constraint: valid when they stop, the same with and without drafts, nobody else's business."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from tests.engine.schemas import schema_and_value
from tiefsee import LLM, Sampling
from tiefsee.engine import Constraint
from tiefsee.errors import InvalidSampling

BUNDLED = Path(__file__).parents[2] / "tiefsee" / "models" / "tiefsee-demo"
PROMPTS = ["Once upon a time", "The sea", "A king"]


@pytest.fixture(scope="module")
def llm():
    return LLM(BUNDLED, dtype="float32", max_running=32, max_context=1024)


def constrained(kind, source="", **options):
    return Sampling(constraint=Constraint(kind, source), **{"temperature": 1.5, "max_tokens": 400, **options})


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_200_random_schemas(llm, temperature):
    """Every output that ends with "stop" is valid, and at least 95 % end."""
    cases = [schema_and_value(seed)[0] for seed in range(200 if temperature else 60)]
    samplings = [
        constrained("json_schema", json.dumps(schema), temperature=temperature, seed=seed)
        for seed, schema in enumerate(cases)
    ]
    answers = llm.generate([PROMPTS[i % 3] for i in range(len(cases))], samplings)
    ended = 0
    for schema, answer in zip(cases, answers, strict=True):
        assert answer.finish_reason in ("stop", "length"), answer.completions[0].error
        if answer.finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(answer.text), schema)
    print(f"{ended} of {len(cases)} ended at temperature {temperature}")
    assert ended >= 0.95 * len(cases)


def test_the_schemas_themselves_hold():
    for seed in range(200):
        schema, value = schema_and_value(seed)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(value, schema)


def test_an_object_a_regex_a_grammar(llm):
    lark = 'start: "sum" (" " NUMBER)+ "."\nNUMBER: /[0-9]{1,3}/'
    samplings = [
        constrained("json_object", seed=3, max_tokens=900), constrained("regex", "[a-f]{3}-[0-9]{2,4}", seed=1),
        constrained("grammar", lark, seed=2), constrained("regex", "(yes|no)", temperature=0),
    ]  # fmt: skip
    anything, code, total, word = llm.generate(["The"] * 4, samplings)
    if anything.finish_reason == "stop":
        assert isinstance(json.loads(anything.text), dict)
    assert re.fullmatch("[a-f]{3}-[0-9]{2,4}", code.text)
    assert total.finish_reason == "length" or re.fullmatch(r"sum( [0-9]{1,3})+\.", total.text)
    assert (word.text in ("yes", "no"), word.finish_reason) == (True, "stop")


def test_cut_off_is_length(llm):
    schema = json.dumps({"type": "string", "minLength": 200, "maxLength": 300})
    (answer,) = llm.generate(["The"], [constrained("json_schema", schema, max_tokens=10)])
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 10


def test_drafts_change_nothing(llm):
    without = LLM(BUNDLED, dtype="float32", max_running=32, max_context=1024, max_draft=0)
    samplings = [
        constrained("json_schema", json.dumps(schema_and_value(seed)[0]), temperature=t, seed=seed, max_tokens=80)
        for seed in range(8) for t in (0, 0.8)
    ]  # fmt: skip
    found, needed = (e.generate(["The sea"] * 16, samplings) for e in (llm, without))
    assert [a.token_ids for a in found] == [a.token_ids for a in needed]


def test_several_answers_go_each_their_own_way(llm):
    (answer,) = llm.generate(["The"], [constrained("regex", "[a-z]{20}", n=4, seed=1)])
    texts = [c.text for c in answer.completions]
    assert all(re.fullmatch("[a-z]{20}", text) for text in texts)
    assert len(set(texts)) == 4


def test_free_requests_beside_constrained_ones_are_left_alone(llm):
    free = Sampling(temperature=0.9, seed=5, max_tokens=30)
    alone = [llm.generate([p], [free])[0].token_ids for p in PROMPTS]
    mixed = llm.generate([*PROMPTS, "The"], [free] * 3 + [constrained("regex", "[a-z]{30}", seed=1)])
    assert [a.token_ids for a in mixed[:3]] == alone


def test_ends_are_held_back_only_while_something_else_is_allowed(llm):
    (short,) = llm.generate(["The"], [constrained("regex", "[ab]{2}", min_tokens=50, ignore_eos=True)])
    assert re.fullmatch("[ab]{2}", short.text)
    (long,) = llm.generate(["The"], [constrained("regex", "[ab]*", min_tokens=12, max_tokens=15, temperature=0)])
    assert len(long.token_ids) >= 12


def test_a_stop_string_cuts(llm):
    (answer,) = llm.generate(["The"], [constrained("regex", "a{3}b{50}", stop=("bb",))])
    assert (answer.text, answer.finish_reason) == ("aaa", "stop")


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("json", "{}", "constraint kind is 'json'"),
        ("json_schema", "{", "cannot be read"),
        ("json_schema", "[1]", "is a list"),
        ("json_schema", '{"type": "strin"}', "cannot be used"),
        ("json_schema", "[" * 200 + "]" * 200, "needed an object|nested"),
        ("json_object", "x", "nothing beside it"),
        ("regex", "", "needs a source"),
        ("regex", "(", "cannot be used"),
        ("grammar", "start: missing", "cannot be used"),
        ("regex", "a" * 300_000, "at most"),
    ],
)
def test_what_cannot_be_enforced_is_refused(llm, kind, source, words):
    with pytest.raises(InvalidSampling, match=words):
        llm.generate(["The"], [constrained(kind, source)])
    assert not llm.core.has_work()
