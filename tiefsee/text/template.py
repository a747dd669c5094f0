"""Chat formats that a checkpoint ships as a Jinja template: V2, V3, V3.1, R1, V3.2-Exp.

What a client typed is told from the template's own control tokens by rendering twice (`placeholders.py`).

A template is code from a stranger, so it runs in Jinja's immutable sandbox, with the names that
`transformers` gives it: `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token`,
`raise_exception`, `strftime_now` and a `tojson` that keeps non-ASCII text. V3.1's switch is the variable
`thinking`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from tiefsee.errors import ConfigError, RequestError
from tiefsee.text.answer import AnswerParser, Ranges, new_call_id
from tiefsee.text.control import CALL_BEGIN, CLOSE, OPEN
from tiefsee.text.conversation import Conversation, Message, ResponseFormat
from tiefsee.text.grammar import answer_grammar
from tiefsee.text.grammar_fenced import FencedCallGrammar
from tiefsee.text.parse import PlainParser
from tiefsee.text.parse_fenced import FencedCallParser
from tiefsee.text.placeholders import CONTROL, Placeholders
from tiefsee.text.prompt import (
    ChatPrompt,
    check_messages,
    check_tools,
    developer_as_system,
    opens_reasoning,
    refuse_effort,
)  # fmt: skip
from tiefsee.text.tokenizer import Tokenizer
from tiefsee.text.tool_texts import describe_tools

if TYPE_CHECKING:
    import jinja2

_HIDDEN = "tiefsee_placeholders"  # the name under which `tojson` finds them
SWITCHES = ("thinking", "enable_thinking")
_ARGUMENTS_AS_OBJECT = re.compile(r"arguments\W*\|\s*tojson")


class TemplateFormat:
    """A checkpoint's `chat_template`. `switch` is the template's variable for thinking, or None."""

    name = "template"
    efforts: tuple[str, ...] = ()

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
        self._fenced = ("```json" in source) if CALL_BEGIN in source else None  # None: it has no tool calls
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
        response_format: ResponseFormat | None = None,
    ) -> ChatPrompt:
        check_messages(messages)
        check_tools(tools)
        refuse_effort(effort, "this checkpoint's template")
        if tools and not (self._knows_tools or self._fenced is not None):
            raise ConfigError(
                f"{len(tools)} tools were given, but this checkpoint's template knows none; leave them out"
            )
        messages = developer_as_system(messages)
        variables = {**self._tokens, **self._thinking_variable(thinking), **_clock()}
        text, ranges = self._write(messages, tools or (), variables)
        in_reasoning = opens_reasoning(text, ranges)
        return ChatPrompt(text, ranges, in_reasoning, continues=bool(messages[-1].get("prefix")))

    def _write(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text, and which of its control tokens are the template's own."""
        real = self._render(messages, tools, variables, None)
        for attempt in (messages, [_without_reasoning(message) for message in messages]):
            hidden = Placeholders()
            rendered = self._render(attempt, tools, variables, hidden)
            text, ranges = hidden.fill(rendered)
            if text == real:
                return self._cut(messages, hidden, rendered, text, ranges)
        if CONTROL.search(json.dumps([messages, tools], ensure_ascii=False)) or messages[-1].get("prefix"):
            raise RequestError(
                "the messages spell control tokens (or end in a prefix), and the checkpoint's chat template takes "
                "the texts apart, so nobody can tell what is typed from what is meant; leave the tokens out"
            )
        return real, tuple(found.span() for found in CONTROL.finditer(real))

    def _cut(
        self, messages: Sequence[Message], hidden: Placeholders, rendered: str, text: str, ranges: Ranges
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """A prompt that is to be continued ends with its last text, without what the template adds."""
        if not messages[-1].get("prefix"):
            return text, tuple(ranges)
        end = hidden.end_of(messages[-1].get("content") or "", rendered)
        if end is None or not messages[-1].get("content"):
            raise RequestError(
                "the last message is to be continued, but it has no text, or the checkpoint's chat template does "
                "not write it; leave the prefix out"
            )
        return text[:end], tuple(r for r in ranges if r[1] <= end)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        hidden: Placeholders | None,
    ) -> str:
        messages = [self._plain(message) for message in messages]
        described = tools and not self._knows_tools
        if described and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        given = messages if hidden is None else hidden.hide(messages)
        if described:
            text = describe_tools(tools, hidden.show if hidden else _to_text, fenced=bool(self._fenced))
            system = given[0]["content"]
            given = [{**given[0], "content": f"{system}\n\n{text}" if system else text}, *given[1:]]
        shown = None if described or not tools else (list(tools) if hidden is None else hidden.hide(list(tools)))
        try:
            written: str = self._template.render(
                messages=given, tools=shown, add_generation_prompt=not messages[-1].get("prefix"), **variables,
                **{_HIDDEN: hidden},
            )  # fmt: skip
        except RequestError:
            raise
        except Exception as error:  # a template may fail in any way that Python can
            raise RequestError(
                f"the checkpoint's chat template cannot write this conversation: {error}; "
                "check the order of the roles and the tool calls"
            ) from error
        return written

    def parser(
        self,
        prompt: ChatPrompt,
        *,
        tokenizer: Tokenizer | None = None,
        calls: bool = True,
        make_id: Callable[[], str] = new_call_id,
    ) -> AnswerParser:
        if not calls or self._fenced is None:
            return PlainParser(prompt, tokenizer)
        return FencedCallParser(prompt, tokenizer, make_id, fenced=self._fenced)

    def grammar(self, conversation: Conversation, prompt: ChatPrompt, tokenizer: Tokenizer) -> str | None:
        calls = None if self._fenced is None else FencedCallGrammar(fenced=self._fenced)
        return answer_grammar(conversation, prompt, tokenizer, calls, may_open=self.reasons_always)

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


def _without_reasoning(message: Message) -> Message:
    """An answer that a client passes back whole: templates that reason cut it at `</think>` themselves."""
    content = message.get("content")
    if message["role"] != "assistant" or not content or CLOSE not in content:
        return message
    return {**message, "content": content.split(CLOSE)[-1]}


def _sandbox() -> jinja2.Environment:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = jinja2.pass_context(_to_json)
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(context: Any, value: Any, **options: Any) -> str:
    """Jinja's own `tojson` escapes HTML and non-ASCII text, which no model was trained on."""
    hidden: Placeholders | None = context.get(_HIDDEN)
    return json.dumps(value, ensure_ascii=False, **options) if hidden is None else hidden.dump(value, **options)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clock() -> dict[str, Any]:
    """The time as templates ask for it; it stands still while one prompt is written."""
    now = datetime.now()
    return {"strftime_now": now.strftime}


def _refuse(message: str) -> NoReturn:
    raise RequestError(f"the checkpoint's chat template refuses this conversation: {message}; change the messages")
