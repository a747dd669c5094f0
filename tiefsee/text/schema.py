"""JSON schemas taken apart, for formats that write the parameters of a call one by one.

shapes_of(schema)   the arguments' properties, required names, what else is allowed; one shape for each
                    alternative of a root `anyOf`
forms_of(schema)    how one value may be written: as raw text, as JSON, or both
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tiefsee.errors import RequestError
from tiefsee.text.lark import ANY, lark_regex, lark_string

Schema = Mapping[str, Any] | bool

TYPES = ("object", "array", "number", "boolean", "null")  # what JSON knows but strings; integers are numbers
_NOTES = {
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "$id",
    "$schema", "$anchor", "$defs", "definitions", "x-guidance",
}  # fmt: skip
_SHAPE = {"type", "properties", "required", "additionalProperties", "$ref", "allOf", "anyOf", "oneOf"}
_OF_STRINGS = {"minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType"}
_BEYOND_REGEX = {
    "format", "contentEncoding", "contentMediaType", "enum", "const", "not", "allOf", "anyOf", "oneOf", "if", "$ref",
    "$dynamicRef",
}  # fmt: skip
_MAX_SHAPES = 32
_MAX_DEPTH = 16  # of references and alternatives inside one another


@dataclass(frozen=True)
class Shape:
    """One way for an object to look.

    `additional` is the schema of undeclared properties; False: there are none; None: not said.
    """

    properties: Mapping[str, Schema] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    additional: Schema | None = None


@dataclass(frozen=True)
class Forms:
    """How a value may be written: a Lark terminal's body for raw text, a schema for JSON; None: not so."""

    text: str | None
    json: Schema | None


def shapes_of(root: Mapping[str, Any], *, strict: bool, place: str) -> list[Shape]:
    """The shapes of an object's schema.

    Raises RequestError for a strict schema with keywords that single properties cannot hold.
    """
    shapes = list(_shapes(root, root, strict, place, 0))
    if len(shapes) > _MAX_SHAPES:
        raise RequestError(
            f"the schema of {place} has {len(shapes)} alternatives at its root; at most {_MAX_SHAPES} can be "
            "enforced; move them into the properties"
        )
    return shapes


def _shapes(schema: Schema, root: Mapping[str, Any], strict: bool, place: str, depth: int) -> Iterator[Shape]:
    if isinstance(schema, bool) or depth > _MAX_DEPTH:
        yield Shape(additional=True)
        return
    unknown = set(schema) - _SHAPE - _NOTES
    if strict and unknown:
        raise RequestError(
            f"the schema of {place} says {', '.join(sorted(unknown))} of all arguments together; this chat format "
            "writes parameters one by one and cannot enforce it; leave it out, or `strict`"
        )
    own = Shape(
        schema.get("properties") or {}, frozenset(schema.get("required") or ()), schema.get("additionalProperties")
    )
    parts: list[list[Shape]] = [[own]]
    if "$ref" in schema:
        parts.append(list(_shapes(resolve(schema["$ref"], root), root, strict, place, depth + 1)))
    parts += [list(_shapes(part, root, strict, place, depth + 1)) for part in schema.get("allOf") or ()]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            parts.append([s for part in schema[key] for s in _shapes(part, root, strict, place, depth + 1)])
    for chosen in product(*parts):
        yield _merged(chosen)


def _merged(shapes: tuple[Shape, ...]) -> Shape:
    """What fits all of them. A property that two describe must fit both."""
    properties: dict[str, Schema] = {}
    for shape in shapes:
        for name, schema in shape.properties.items():
            properties[name] = {"allOf": [properties[name], schema]} if name in properties else schema
    required = frozenset().union(*(shape.required for shape in shapes))
    for name in sorted(required - set(properties)):
        properties[name] = True
    said = [shape.additional for shape in shapes if shape.additional is not None]
    additional: Schema = not properties  # silent: what is declared is all there is, and all if nothing is
    if said:
        additional = False if False in said else (said[0] if len(said) == 1 else {"allOf": said})
    return Shape(properties, required, additional)


def forms_of(schema: Schema, root: Mapping[str, Any], *, strict: bool, depth: int = 0) -> Forms:
    """How a value of this schema may be written.

    A string that is bound in a way that no regular expression of ours can hold is written as JSON, in quotes:
    always right, if less usual. A `format` binds only where the schema is strict.
    """
    if isinstance(schema, bool):
        return Forms(ANY, {"type": list(TYPES)}) if schema else Forms(None, False)
    keys = set(schema) - _NOTES
    if not strict:
        keys -= {"format", "contentEncoding", "contentMediaType"}
    if not keys:
        return Forms(ANY, {"type": list(TYPES)})
    if keys == {"$ref"} and depth < _MAX_DEPTH:
        return forms_of(resolve(schema["$ref"], root), root, strict=strict, depth=depth + 1)
    if keys <= {"anyOf", "type"} and "anyOf" in keys and depth < _MAX_DEPTH:
        options = [forms_of(part, root, strict=strict, depth=depth + 1) for part in schema["anyOf"]]
        return _union(schema, options) if "type" not in keys else Forms(None, schema)
    if keys <= {"enum", "type"} and "enum" in keys:
        return _of_values([v for v in schema["enum"] if _has_type(v, schema.get("type"))])
    if keys <= {"const", "type"} and "const" in keys:
        return _of_values([schema["const"]])
    types = schema.get("type")
    types = [types] if isinstance(types, str) else list(types or ())
    if "string" not in types:
        return Forms(None, schema)
    text = _text(schema, keys)
    if text is None:
        return Forms(None, schema)
    others = [name for name in types if name != "string"]
    if not others:
        return Forms(text, None)
    return Forms(text, {k: v for k, v in schema.items() if k not in _OF_STRINGS} | {"type": others})


def _union(schema: Mapping[str, Any], options: list[Forms]) -> Forms:
    texts = [form.text for form in options if form.text is not None]
    jsons = [form.json for form in options if form.json is not None]
    notes = {key: value for key, value in schema.items() if key != "anyOf"}
    return Forms(" | ".join(f"({text})" for text in texts) or None, {**notes, "anyOf": jsons} if jsons else None)


def _of_values(values: list[Any]) -> Forms:
    texts = [lark_string(value) for value in values if isinstance(value, str)]
    others = [value for value in values if not isinstance(value, str)]
    return Forms(" | ".join(texts) or None, {"enum": others} if others or not texts else None)


def _has_type(value: Any, types: Any) -> bool:
    names = [types] if isinstance(types, str) else types
    if names is None:
        return True
    kinds = {"string": str, "object": Mapping, "array": list, "boolean": bool, "null": type(None)}
    for name in names:
        if name in ("number", "integer"):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif isinstance(value, kinds.get(name, ())):
            return True
    return False


def _text(schema: Mapping[str, Any], keys: set[str]) -> str | None:
    """The terminal of a raw string, or None if it needs more than lengths and a plain pattern."""
    if keys & _BEYOND_REGEX:
        return None
    low, high = schema.get("minLength"), schema.get("maxLength")
    parts = []
    if low or high is not None:
        parts.append(rf"/(.|\n){{{low or 0},{'' if high is None else high}}}/")
    if "pattern" in keys:
        pattern = _anchored(schema["pattern"])
        if pattern is None:
            return None
        parts.append(pattern)
    return " & ".join(parts) or ANY


def _anchored(pattern: str) -> str | None:
    """A search pattern of JSON Schema (ECMA) as a terminal that matches the whole; None if not plainly so."""
    body = pattern.removeprefix("^")
    before = "" if body != pattern else r"(.|\n)*"
    ends = body.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", body)
    body, after = (body[:-1], "") if ends else (body, r"(.|\n)*")
    outside = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", body)
    if "|" in _at_top(outside) and not (before and after):
        return None  # an anchor would hold for one alternative only
    if re.search(r"[\^$]|\(\?(?!:)", outside) or re.search(r"\\[^dws\\.\[\](){}*+?|/^$\-]", body):
        return None
    body = body.replace(r"\d", "[0-9]").replace(r"\w", "[A-Za-z0-9_]") if r"\\" not in body else body
    return lark_regex(f"{before}(?:{body}){after}" if body else f"{before}{after}" or "()")


def _at_top(pattern: str) -> str:
    """What of a pattern, free of escapes and classes, stands outside all parentheses."""
    depth, top = 0, ""
    for c in pattern:
        depth += (c == "(") - (c == ")")
        top += c if depth == 0 else ""
    return top


def resolve(ref: Any, root: Mapping[str, Any]) -> Schema:
    """The schema that a local `$ref` points to. Nothing is ever fetched."""
    found: Any = root
    if not isinstance(ref, str) or not ref.startswith("#"):
        raise RequestError(f"a schema refers to {ref!r}; only references inside the schema (#/$defs/...) are followed")
    for part in ref[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            raise RequestError(f"a schema refers to {ref!r}, which it does not hold; define it under $defs")
    if not isinstance(found, (Mapping, bool)):
        raise RequestError(f"a schema refers to {ref!r}, which is no schema")
    return found


def with_definitions(schema: Schema, root: Mapping[str, Any]) -> Schema:
    """A part of `root` that stands alone: what its `$ref`s mean comes along as `#/$defs/root`."""
    if isinstance(schema, bool) or not _refers(schema):
        return schema
    moved = _moved(schema)
    assert isinstance(moved, dict)
    return {**moved, "$defs": {"root": _moved(root)}}


def _refers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("$ref"), str) or any(_refers(v) for v in value.values())
    return isinstance(value, list) and any(_refers(v) for v in value)


def _moved(value: Any) -> Any:
    if isinstance(value, Mapping):
        moved = {key: _moved(v) for key, v in value.items()}
        ref = value.get("$ref")
        if isinstance(ref, str) and ref.startswith("#"):
            moved["$ref"] = "#/$defs/root" + ref[1:]
        return moved
    return [_moved(v) for v in value] if isinstance(value, list) else value
