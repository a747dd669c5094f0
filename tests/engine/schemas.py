"""Random bounded JSON schemas, and for each a value that fits it: the same ones for the same seed."""

from __future__ import annotations

import string
from random import Random
from typing import Any

PATTERNS = (  # ECMA patterns, each with a way to make a string that it matches
    ("^[a-z]{2,6}$", lambda r: "".join(r.choices(string.ascii_lowercase, k=r.randint(2, 6)))),
    ("^[A-Z]{3}-[0-9]{1,4}$", lambda r: "".join(r.choices(string.ascii_uppercase, k=3)) + f"-{r.randint(0, 9999)}"),
    ("^(yes|no|perhaps)$", lambda r: r.choice(("yes", "no", "perhaps"))),
    ("^\\d{4}-\\d{2}$", lambda r: f"{r.randint(0, 9999):04}-{r.randint(0, 99):02}"),
)
LETTERS = string.ascii_letters + ' 0123456789_"\\/{}é猫🙂\n'
MAX_DEPTH = 3


def schema_and_value(seed: int) -> tuple[dict[str, Any], Any]:
    """An object's schema in which every string and array has a limit; some use `$ref`."""
    random = Random(seed)
    schema, value = _object(random, 0)
    if random.random() < 0.3:
        shared, example = _object(random, 2)
        schema["$defs"] = {"shared": shared}
        schema["properties"]["linked"] = {"$ref": "#/$defs/shared"}
        schema["required"].append("linked")
        value["linked"] = example
    return schema, value


def _any(random: Random, depth: int) -> tuple[dict[str, Any], Any]:
    plain = [_string, _pattern, _enum, _integer, _number, _boolean, _null]
    nested = [_object, _array, _union] if depth < MAX_DEPTH else []
    return random.choice(plain + nested)(random, depth)


def _object(random: Random, depth: int) -> tuple[dict[str, Any], Any]:
    properties, required, value = {}, [], {}
    for name in random.sample(("name", "age", "tags", "a b", "Größe", "x_1", "next", "is"), random.randint(1, 4)):
        properties[name], example = _any(random, depth + 1)
        if random.random() < 0.7:
            required.append(name)
        if name in required or random.random() < 0.5:
            value[name] = example
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema, value


def _array(random: Random, depth: int) -> tuple[dict[str, Any], Any]:
    items, example = _any(random, depth + 1)
    low = random.randint(0, 2)
    high = low + random.randint(0, 3)
    schema = {"type": "array", "items": items, "minItems": low, "maxItems": high}
    return schema, [example] * random.randint(low, high)


def _union(random: Random, depth: int) -> tuple[dict[str, Any], Any]:
    (one, value), (other, _) = _any(random, depth + 1), _any(random, depth + 1)
    return {"anyOf": [one, other]}, value


def _string(random: Random, _: int) -> tuple[dict[str, Any], Any]:
    low = random.randint(0, 4)
    high = low + random.randint(0, 12)
    length = random.randint(low, high)
    return {"type": "string", "minLength": low, "maxLength": high}, "".join(random.choices(LETTERS, k=length))


def _pattern(random: Random, _: int) -> tuple[dict[str, Any], Any]:
    pattern, example = random.choice(PATTERNS)
    return {"type": "string", "pattern": pattern}, example(random)


def _enum(random: Random, _: int) -> tuple[dict[str, Any], Any]:
    values = random.sample(("red", "green", "", 'a "b"', 7, -1.5, True, None, "Straße"), random.randint(1, 4))
    return {"enum": values}, random.choice(values)


def _integer(random: Random, _: int) -> tuple[dict[str, Any], Any]:
    low = random.randint(-1000, 1000)
    high = low + random.randint(0, 5000)
    return {"type": "integer", "minimum": low, "maximum": high}, random.randint(low, high)


def _number(random: Random, _: int) -> tuple[dict[str, Any], Any]:
    low = random.randint(-100, 100) / 4
    high = low + random.randint(1, 400) / 4
    return {"type": "number", "minimum": low, "maximum": high}, round(random.uniform(low, high), 2)


def _boolean(random: Random, _: int) -> tuple[dict[str, Any], Any]:
    return {"type": "boolean"}, random.random() < 0.5


def _null(_random: Random, _: int) -> tuple[dict[str, Any], Any]:
    return {"type": "null"}, None
