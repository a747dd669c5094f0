"""Is a client's JSON schema well-formed where we read it? What lies deeper is llguidance's to judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tiefsee.errors import RequestError

_MAX_NESTED = 64
_Kind: TypeAlias = tuple[Callable[[Any], bool], str]


def check_schema(schema: Any, place: str, depth: int = 0) -> None:
    """Raises RequestError unless the keywords that are read here have values of their kind, at every depth."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise RequestError(f"{place} is {schema!r:.60}; needed is a JSON schema: an object, true or false")
    if depth > _MAX_NESTED:
        raise RequestError(f"{place} lies {depth} schemas deep; at most {_MAX_NESTED} are read")
    for key, (is_right, needed) in _KINDS.items():
        if key in schema and not is_right(schema[key]):
            raise RequestError(f"{place}.{key} is {schema[key]!r:.60}; needed is {needed}")
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        for name, part in (schema.get(key) or {}).items():
            check_schema(part, f"{place}.{key}.{name}", depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        for n, part in enumerate(schema.get(key) or ()):
            check_schema(part, f"{place}.{key}[{n}]", depth + 1)
    for key in ("items", "additionalProperties"):
        if key in schema:
            check_schema(schema[key], f"{place}.{key}", depth + 1)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_types(value: Any) -> bool:
    return isinstance(value, str) or _is_names(value)


_AN_OBJECT: _Kind = (_is_object, "an object")
_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("properties", "$defs", "definitions", "patternProperties"), _AN_OBJECT),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "enum"), (_is_list, "a list with something in it")),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (_is_count, "a whole number from 0")),
    **dict.fromkeys(("pattern", "$ref"), (_is_text, "text")),
    "required": (_is_names, "a list of names"),
    "type": (_is_types, "a type or a list of types"),
}
