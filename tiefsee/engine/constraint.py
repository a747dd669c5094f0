"""What an answer has to look like: `Constraint`, checked on construction as far as that costs nothing.

Whether the source can be compiled is found out by `guide.py`, when the request is added.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from tiefsee.errors import InvalidSampling

ConstraintKind = Literal["json_object", "json_schema", "regex", "grammar"]
KINDS: tuple[ConstraintKind, ...] = get_args(ConstraintKind)

MAX_SOURCE_CHARS = 256 * 1024
# Objects and arrays inside each other in a schema. serde_json, which reads it next, stops at 128.
MAX_SCHEMA_DEPTH = 100


@dataclass(frozen=True)
class Constraint:
    """The whole answer is of this form. Two strings, so that it travels anywhere.

        Constraint("json_object")                                     any JSON object
        Constraint("json_schema", '{"type": "integer"}')              JSON of a schema (draft 2020-12)
        Constraint("regex", "(yes|no)")                               a regular expression, of the whole answer
        Constraint("grammar", 'start: "a" b\\nb: "b" b | ""')          Lark, in llguidance's dialect

    Properties come in the schema's order; between JSON's tokens stands at most one space, or a line break with
    an indent. What a schema says and cannot be enforced is an error, not ignored.
    Raises InvalidSampling for an unknown kind, and for sources that are no JSON, too long or too deep.
    """

    kind: ConstraintKind
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidSampling(f"constraint kind is {self.kind!r}; needed one of {', '.join(KINDS)}")
        if not isinstance(self.source, str):
            raise InvalidSampling(f"the source of a constraint is a {type(self.source).__name__}; needed text")
        if len(self.source) > MAX_SOURCE_CHARS:
            raise InvalidSampling(
                f"the {self.kind} of a constraint has {len(self.source)} characters; at most {MAX_SOURCE_CHARS} are "
                "compiled; shorten it"
            )
        if any("\ud800" <= c <= "\udfff" for c in self.source):
            raise InvalidSampling(f"the {self.kind} of a constraint holds half a surrogate pair; send valid Unicode")
        if (self.kind == "json_object") != (not self.source):
            needed = "nothing beside it" if self.kind == "json_object" else "a source"
            raise InvalidSampling(f"a constraint of kind {self.kind} needs {needed}; found {self.source[:80]!r}")
        if self.kind == "json_schema":
            self._check_schema()

    def _check_schema(self) -> None:
        try:
            schema = json.loads(self.source)
        except (ValueError, RecursionError) as error:
            raise InvalidSampling(f"the JSON schema of a constraint cannot be read: {error}") from error
        if not isinstance(schema, dict | bool):
            raise InvalidSampling(f"the JSON schema is a {type(schema).__name__}; needed an object, or true or false")
        depth, level = 0, [schema]
        while level:
            depth += 1
            level = [x for v in level if isinstance(v, dict | list) for x in (v.values() if isinstance(v, dict) else v)]
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidSampling(
                f"the JSON schema is nested {depth} levels deep; at most {MAX_SCHEMA_DEPTH} are compiled; "
                "put parts of it into $defs"
            )
