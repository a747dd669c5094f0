"""Fields of a request body, checked: each reader names the place of what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tiefsee.errors import RequestError
from tiefsee.text.conversation import ResponseFormat, Tool

Body = Mapping[str, Any]
# Spellings of effort beyond V4's own three levels, as DeepSeek's API takes them.
EFFORTS = {"minimal": "low", "low": "low", "medium": "high", "high": "high", "xhigh": "max", "max": "max"}


def text_of(content: Any, place: str, kinds: Sequence[str] = ("text",)) -> str:
    """Content as text: a string, or parts of one of the `kinds`, joined by an empty line.

    So DeepSeek's own package joins them. Raises RequestError for an image, audio or a file.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{place} is {_name(content)}; needed is text or a list of text parts")
    texts = []
    for n, part in enumerate(content):
        part = as_object(part, f"{place}[{n}]")
        kind = part.get("type")
        if kind not in kinds:
            raise RequestError(
                f"{place}[{n}] is a part of type {kind!r}; this model reads text only, and nothing is fetched; "
                f"send parts of type {' or '.join(kinds)}"
            )
        texts.append(as_text(part.get("refusal" if kind == "refusal" else "text"), f"{place}[{n}].text"))
    return "\n\n".join(texts)


def as_object(value: Any, place: str) -> Body:
    if not isinstance(value, Mapping):
        raise RequestError(f"{place} is {_name(value)}; needed is an object")
    return value


def as_text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{place} is {_name(value)}; needed is text")
    return value


def as_list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{place} is {_name(value)}; needed is a list")
    return value


def optional_object(body: Body, key: str, place: str = "") -> Body:
    """An object that may be missing or null: then it is empty."""
    value = body.get(key)
    return {} if value is None else as_object(value, place or key)


def flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{place} is {_name(value)}; needed is true or false")
    return value


def function_tool(function: Body, place: str, schema_key: str = "parameters") -> Tool:
    """A tool in the spelling of Chat Completions."""
    made: dict[str, Any] = {"name": as_text(function.get("name"), f"{place}.name")}
    if not made["name"]:
        raise RequestError(f"{place}.name is empty; needed is the name that the model calls")
    if function.get("description") is not None:
        made["description"] = as_text(function["description"], f"{place}.description")
    if function.get(schema_key) is not None:
        made["parameters"] = as_object(function[schema_key], f"{place}.{schema_key}")
    if function.get("strict") is not None:
        made["strict"] = flag(function["strict"], f"{place}.strict")
    return {"type": "function", "function": made}


def arguments_of(value: Any, place: str) -> str:
    """The arguments of an earlier call as the JSON text of an object; some clients send the object itself."""
    text = value if isinstance(value, str) else json.dumps(as_object(value, place), ensure_ascii=False)
    try:
        parsed = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place} is no JSON ({error}); pass back what the model wrote") from error
    as_object(parsed, place)
    return text or "{}"


def effort_of(value: Any, place: str) -> tuple[bool | None, str | None]:
    """Thinking and effort from the `effort` of a client: "none" switches thinking off."""
    if value is None:
        return None, None
    if value == "none":
        return False, None
    if not isinstance(value, str) or value not in EFFORTS:
        raise RequestError(f"{place} is {value!r}; needed is none or one of {', '.join(EFFORTS)}")
    return None, EFFORTS[value]


def thinking_of(value: Any) -> tuple[bool | None, int | None]:
    """Thinking and its budget from `thinking` (DeepSeek, Anthropic): {"type": "enabled", "budget_tokens": 1024}."""
    if value is None:
        return None, None
    value = as_object(value, "thinking")
    kind = value.get("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError(f"thinking.type is {kind!r}; needed is enabled, disabled or adaptive")
    budget = value.get("budget_tokens")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise RequestError(f"thinking.budget_tokens is {budget!r}; needed is a whole number above 0")
    return (None if kind == "adaptive" else kind == "enabled"), budget


def schema_format(schema: Any, place: str) -> ResponseFormat:
    if not isinstance(schema, (Mapping, bool)):
        raise RequestError(f"{place} is {_name(schema)}; needed is a JSON schema")
    return ResponseFormat("json_schema", json.dumps(schema, ensure_ascii=False))


def check_choice(choice: str, name: str | None, tools: Sequence[Tool]) -> None:
    """Raises RequestError for a choice that the tools do not allow."""
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError(f"tools are named {', '.join(names)}; needed are different names")
    if choice in ("required", "named") and not tools:
        raise RequestError("tool_choice asks for a call, but there are no tools; send tools")
    if name is not None and name not in names:
        raise RequestError(f"tool_choice names {name!r}, but the tools are {', '.join(names)}")


def _name(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
