"""Random bounded JSON schemas with a value that fits each, for the tests of grammars."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

LETTERS = 'ab Z9_-"\\/<>{}é🙂\n'
NAMES = st.text("abcXYZ_09-.é", min_size=1, max_size=6)


@st.composite
def strings(draw) -> tuple[dict, Any]:
    low = draw(st.integers(0, 3))
    high = low + draw(st.integers(0, 5))
    if draw(st.booleans()):
        return {"type": "string", "minLength": low, "maxLength": high}, draw(
            st.text(LETTERS, min_size=low, max_size=high)
        )
    pattern, letters = draw(st.sampled_from([("^[a-c]{%d,%d}$", "abc"), (r"^\d{%d,%d}$", "0123456789")]))
    return {"type": "string", "pattern": pattern % (low, high)}, draw(st.text(letters, min_size=low, max_size=high))


@st.composite
def numbers(draw) -> tuple[dict, Any]:
    low = draw(st.integers(-50, 50))
    high = low + draw(st.integers(0, 100))
    return {"type": "integer", "minimum": low, "maximum": high}, draw(st.integers(low, high))


@st.composite
def choices(draw) -> tuple[dict, Any]:
    values = draw(
        st.lists(
            st.one_of(st.text(LETTERS, max_size=5), st.integers(-9, 9), st.booleans(), st.none()),
            min_size=1,
            max_size=4,
        )
    )
    return {"enum": values}, draw(st.sampled_from(values))


PLAIN = st.one_of(strings(), numbers(), choices(), st.tuples(st.just({"type": "boolean"}), st.booleans()))


@st.composite
def arrays(draw, items) -> tuple[dict, Any]:
    schema, value = draw(items)
    count = draw(st.integers(0, 3))
    return {"type": "array", "items": schema, "minItems": min(count, 1), "maxItems": 3}, [value] * count


@st.composite
def objects(draw, values) -> tuple[dict, Any]:
    properties, example, required = {}, {}, []
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        properties[name], value = draw(values)
        kind = draw(st.sampled_from(["required", "there", "absent"]))
        if kind != "absent":
            example[name] = value
        if kind == "required":
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}, example


@st.composite
def unions(draw, values) -> tuple[dict, Any]:
    (one, value), (other, _) = draw(values), draw(values)
    return {"anyOf": [one, other]}, value


VALUES = st.recursive(PLAIN, lambda inner: st.one_of(arrays(inner), objects(inner), unions(inner)), max_leaves=4)
OBJECTS = objects(VALUES)
