"""Tool calls of V3.2 and V4 as grammar rules: DSML, one parameter at a time, in any order.

A parameter is a string, raw up to its closing tag, or the JSON of its schema; required ones must be there
and none comes twice. An undeclared parameter is allowed only where the schema says so (or declares none).
What a schema says of all arguments together (`minProperties`, `not`) is refused with `strict`, else ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiefsee.errors import RequestError
from tiefsee.text.control import DSML
from tiefsee.text.conversation import Tool
from tiefsee.text.grammar import parameters_of
from tiefsee.text.lark import Rules, json_rule, lark_string
from tiefsee.text.schema import Shape, forms_of, shapes_of, with_definitions

# A permutation is kept in the 64 bits that llguidance gives a rule; longer lists keep their order instead.
_MAX_PERMUTED = 60


class DsmlCallGrammar:
    """`block` is the name of the tag around all calls."""

    def __init__(self, block: str) -> None:
        self._block = block

    def write(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool, text: str) -> tuple[str, str]:
        dsml = rules.control(DSML)
        calls = " | ".join(_Call(rules, n, tool).write() for n, tool in enumerate(tools))
        rules.add("call", f'"<" {dsml} ({calls}) "</" {dsml} "invoke>\\n"')
        rules.add("calls", f'{dsml} "{self._block}>\\n" {"call+" if parallel else "call"} "</" {dsml} "{self._block}>"')
        alone = rules.add("BEFORE", r"/\n{0,2}</")
        after_text = rules.add("TEXT_BEFORE", r"/(.|\n)*</")
        return f"{alone} calls", f"{text} | {after_text} calls"


class _Call:
    """The rules of one tool; names end in its number."""

    def __init__(self, rules: Rules, number: int, tool: Tool) -> None:
        self._rules = rules
        self._dsml = rules.control(DSML)
        self._number = number
        self._name: str = tool["function"]["name"]
        self._strict = bool(tool["function"].get("strict"))
        self._root = parameters_of(tool)

    def write(self) -> str:
        shapes = shapes_of(self._root, strict=self._strict, place=f"tool {self._name!r}")
        bodies = [self._parameters(f"{self._number}_{n}", shape) for n, shape in enumerate(shapes)]
        parameters = self._rules.add(f"parameters_{self._number}", " | ".join(bodies))
        head = lark_string(f'invoke name="{checked_name(self._name)}">\n')
        return f"{head} {parameters}"

    def _parameters(self, suffix: str, shape: Shape) -> str:
        """The rule of all parameters of one shape; returns what to put for it."""
        names = [name for name, schema in shape.properties.items() if schema is not False]
        parts = [self._parameter(f"{suffix}_{n}", name, shape.properties[name]) for n, name in enumerate(names)]
        free = ""
        if shape.additional is not False:
            free = self._free_parameter(f"{suffix}_free", names, shape.additional)
        if len(names) > _MAX_PERMUTED:
            ordered = [part if name in shape.required else f"{part}?" for name, part in zip(names, parts, strict=True)]
            return self._rules.add(f"list_{suffix}", " ".join([*ordered, *([f"{free}*"] if free else [])]))
        if not names:  # V3.2 writes an empty line where there is no parameter at all
            return self._rules.add(f"list_{suffix}", f"{free}*" if free else r'"\n"?')
        rule = f"list_{suffix}"
        needed = [f"bit_set({n})" for n, name in enumerate(names) if name in shape.required]
        options = ['""' + (f" %if {_all_of(needed)}" if needed else "")]
        options += [f"{part} {rule}::set_bit({n}) %if bit_clear({n})" for n, part in enumerate(parts)]
        options += [f"{free} {rule}::_"] if free else []
        self._rules.add(f"{rule}::_", "\n  | ".join(options))
        return f"{rule}::0x0"

    def _parameter(self, suffix: str, name: str, schema: Any) -> str:
        head = lark_string(f'parameter name="{checked_name(name)}" string=')
        return self._rules.add(f"parameter_{suffix}", f'"<" {self._dsml} {head} ({self._value(suffix, schema)})')

    def _free_parameter(self, suffix: str, names: Sequence[str], schema: Any) -> str:
        others = " | ".join(lark_string(name) for name in names)
        name = r'/[^"\n<>]{1,64}/' + (f" & ~({others})" if others else "")
        terminal = self._rules.add(f"NAME_{suffix.upper()}", name)
        value = self._value(suffix, schema)
        body = f'"<" {self._dsml} "parameter name=\\"" {terminal} "\\" string=" ({value})'
        return self._rules.add(f"parameter_{suffix}", body)

    def _value(self, suffix: str, schema: Any) -> str:
        """The rest of a parameter's tag, its value, and the tag that closes it."""
        forms = forms_of(schema, self._root, strict=self._strict)
        close = f'{self._dsml} "parameter>\\n"'
        options = []
        if forms.text is not None:
            terminal = self._rules.add(f"VALUE_{suffix.upper()}", f'({forms.text}) "</"')
            options.append(f'"\\"true\\">" {terminal} {close}')
        if forms.json is not None:
            schema = with_definitions(forms.json, self._root)
            rule = self._rules.add(f"value_{suffix}", json_rule(schema, lenient=not self._strict))
            options.append(f'"\\"false\\">" {rule} "</" {close}')
        return " | ".join(options)


def checked_name(name: str) -> str:
    """A name that stands between quotes in a tag."""
    if not name or any(c in '"\n\r<>' for c in name):
        raise RequestError(f"the name {name!r} cannot be written in this chat format; leave quotes and brackets out")
    return name


def _all_of(conditions: Sequence[str]) -> str:
    first, *rest = conditions
    return f"and({first}, {_all_of(rest)})" if rest else first
