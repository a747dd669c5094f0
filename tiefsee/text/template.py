"""Chat formats that a checkpoint ships as a Jinja template: V2, V3, V3.1, R1, V3.2-Exp.

A template is code from a stranger, so it runs in Jinja's immutable sandbox, with the names that
`transformers` gives it: `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token`,
`raise_exception`, `strftime_now` and a `tojson` that keeps non-ASCII text. V3.1's switch is the variable
`thinking`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from tiefsee.errors import ConfigError, RequestError
from tiefsee.text.prompt import ChatPrompt, Message, check_messages, check_tools, refuse_effort
from tiefsee.text.reasoning import CLOSE, OPEN

if TYPE_CHECKING:
    import jinja2

SWITCHES = ("thinking", "enable_thinking")
_ARGUMENTS_AS_OBJECT = re.compile(r"arguments\W*\|\s*tojson")


class TemplateFormat:
    """A checkpoint's `chat_template`. `switch` is the template's variable for thinking, or None."""

    name = "template"

    def __init__(self, source: str, bos_token: str | None = None, eos_token: str | None = None) -> None:
        import jinja2
        from jinja2 import nodes

        environment = _sandbox()
        try:
            names = {node.name for node in environment.parse(source).find_all(nodes.Name)}
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the checkpoint's chat template has a syntax error in line {error.lineno}: {error.message}; "
                "take chat_template from the original release"
            ) from error
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._source = source
        self._knows_tools = "tools" in names
        self.switch = next((name for name in SWITCHES if name in names), None)

    @property
    def reasons_always(self) -> bool:
        """R1 writes or removes think tags, but has no switch."""
        return self.switch is None and (OPEN in self._source or CLOSE in self._source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        effort: str | None = None,
    ) -> ChatPrompt:
        check_messages(messages)
        check_tools(tools)
        refuse_effort(effort, "this checkpoint's template")
        variables = {**self._tokens, **self._thinking_variable(thinking)}
        if tools and not self._knows_tools:
            raise ConfigError(
                f"{len(tools)} tools were given, but this checkpoint's template knows none; leave them out"
            )
        try:
            text = self._template.render(
                messages=[self._plain(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                **variables,
            )
        except RequestError:
            raise
        except Exception as error:  # a template may fail in any way that Python can
            raise RequestError(
                f"the checkpoint's chat template cannot write this conversation: {error}; "
                "check the order of the roles and the tool calls"
            ) from error
        return ChatPrompt(text, None, starts_in_reasoning=text.rstrip().endswith(OPEN))

    def _thinking_variable(self, thinking: bool | None) -> dict[str, bool]:
        if thinking is None:
            return {}
        if self.switch is not None:
            return {self.switch: thinking}
        if thinking == self.reasons_always:
            return {}
        does = "always reasons" if self.reasons_always else "never reasons"
        raise ConfigError(
            f"thinking={thinking} was asked for, but this checkpoint {does}: its template has no switch; "
            "leave thinking out"
        )

    def _plain(self, message: Message) -> dict[str, Any]:
        """The message as the template wants it.

        The API carries the arguments of a tool call as JSON text. A template that writes them with
        `tojson` wants the object: text would come out quoted twice.
        """
        plain = dict(message)
        if plain.get("tool_calls") and _ARGUMENTS_AS_OBJECT.search(self._source):
            plain["tool_calls"] = [_with_object(call) for call in plain["tool_calls"]]
        return plain


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function["arguments"], str):
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}


def _sandbox() -> jinja2.Environment:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own `tojson` escapes HTML and non-ASCII text, which no model was trained on."""
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> NoReturn:
    raise RequestError(f"the checkpoint's chat template refuses this conversation: {message}; change the messages")
