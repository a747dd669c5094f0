"""Lark source in llguidance's dialect: rules as they are collected, and how text, regexes and schemas stand in it.

JSON is written on one line, `{"a": 1, "b": [2, 3]}`, as the chat formats write it in a prompt: where white space
is free, a hot sampler may write nothing else.
Source: github.com/guidance-ai/llguidance, docs/syntax.md, docs/json_schema.md and docs/parametric.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.text.tokenizer import Tokenizer

ANY = r"/(.|\n)*/"
NEWLINES = r"/\n{1,2}/"
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Rules:
    """Rules as they are collected, and the names of control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rules: list[str] = []

    def add(self, name: str, body: str) -> str:
        """Adds a rule (a lower-case name) or a terminal (upper-case); returns its name."""
        self._rules.append(f"{name}: {body}")
        return name

    def control(self, token: str) -> str:
        """One control token, by its id."""
        token_id = self._tokenizer.token_id(token)
        if token_id is None or token_id not in self._tokenizer.control_ids:
            raise ConfigError(
                f"the tokenizer has no token {token}, which this chat format builds answers with, so an answer "
                "cannot be constrained; take tokenizer.json from the original release"
            )
        return f"<[{token_id}]>"

    def source(self) -> str:
        return "\n".join(self._rules) + "\n"


# Digits after the point of a number between bounds. Unbounded, a hot sampler (or a weak model) writes digits for ever.
SMALLEST_STEP = 1e-9
_LITERAL = {"enum", "const", "default", "examples", "example"}  # of a schema: values, not schemas


def with_short_numbers(schema: Any) -> Any:
    """The schema, whose numbers between two bounds have at most nine digits after the point."""
    if isinstance(schema, list):
        return [with_short_numbers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key in _LITERAL else with_short_numbers(value) for key, value in schema.items()}
    low, high = (
        next((schema[k] for k in (name, f"exclusive{name.title()}") if isinstance(schema.get(k), int | float)), None)
        for name in ("minimum", "maximum")
    )
    is_number = schema.get("type") == "number" or (isinstance(schema.get("type"), list) and "number" in schema["type"])
    if is_number and low is not None and high is not None and high - low > 1e3 * SMALLEST_STEP:
        found.setdefault("multipleOf", SMALLEST_STEP)
    return found


def json_rule(schema: Mapping[str, Any] | bool, *, lenient: bool = False) -> str:
    """A schema as the body of a rule. `lenient` ignores keywords that llguidance does not know."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    style = {**JSON_STYLE, "lenient": True} if lenient else JSON_STYLE
    return f"%json {json.dumps({**with_short_numbers(schema), 'x-guidance': style}, ensure_ascii=False)}"


def lark_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def lark_regex(pattern: str) -> str:
    """A regular expression between slashes; those inside get a backslash unless they have one."""
    escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
    return "/" + escaped.replace("\n", r"\n").replace("\r", r"\r") + "/"


_QUOTED = re.compile(
    r"""("(?:\\.|[^"\\\n])*"i?|(?<![\w)\]}?*+])/(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\n])+/[a-z]*|//[^\n]*|\#[^\n]*)"""
    r"""|\bstart\b"""
)


def rename_start(source: str) -> str:
    """The client's grammar with its rule `start` as `client_start`; strings, regexes and comments stay."""
    return _QUOTED.sub(lambda found: found[1] or "client_start", source)
