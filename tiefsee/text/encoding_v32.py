"""The chat format of DeepSeek-V3.2, which ships no template but a description in code.

    BOS system <｜User｜>question<｜Assistant｜><think>reasoning</think>answer EOS <｜User｜>...

* Only the turn after the last user message keeps its reasoning; older ones are written `</think>answer`.
  Without thinking the prompt closes `</think>` at once.
* Tools are described at the end of the system message; calls and results are written in DSML, an XML
  whose tags carry the token `｜DSML｜`. After results, thinking opens again.

Source: the file encoding/encoding_dsv32.py of the release deepseek-ai/DeepSeek-V3.2 (MIT) and its README.
The wording of `_TOOLS` is part of the format: the model was trained on it. (Copies of that file in two
engines have lost its blank lines.) The release's developer role is a question with tools of its own, meant for
search agents; a developer message at the beginning is OpenAI's, and is written as system.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from tiefsee.errors import RequestError
from tiefsee.text.answer import AnswerParser, new_call_id
from tiefsee.text.control import CLOSE, DSML, OPEN
from tiefsee.text.conversation import Conversation, Message, ResponseFormat
from tiefsee.text.grammar import answer_grammar, read_schema
from tiefsee.text.grammar_dsml import DsmlCallGrammar
from tiefsee.text.parse import PlainParser
from tiefsee.text.parse_dsml import DsmlParser
from tiefsee.text.prompt import ChatPrompt, check_messages, check_tools, opens_reasoning, refuse_effort
from tiefsee.text.tokenizer import Tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
BLOCK = "function_calls"  # the tag around all calls

_TOOLS = """## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your \
reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and \
objects should use JSON format. The "string" attribute should be set to "true" for string type parameters \
and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a \
thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"""


_RESPONSE_FORMAT = "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"


class V32Format:
    """Writes conversations for V3.2. Thinking is off unless asked for, as in V3.1's template."""

    name = "v3.2"
    efforts: tuple[str, ...] = ()

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
        refuse_effort(effort, "V3.2")
        messages = _one_system_message(messages)
        wants_schema = response_format is not None and response_format.kind == "json_schema"
        if (tools or wants_schema) and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        writer = _Writer(messages, bool(thinking))
        writer.special(BOS)
        for n, message in enumerate(messages):
            getattr(writer, f"write_{message['role']}")(n, message)
            if n == 0 and tools:
                writer.write_tools(tools)
            if n == 0 and response_format is not None and wants_schema:
                writer.plain(_RESPONSE_FORMAT + _json(read_schema(response_format.source)))
        in_reasoning = opens_reasoning(writer.text, writer.ranges)
        continues = bool(messages[-1].get("prefix"))
        return ChatPrompt(writer.text, tuple(writer.ranges), in_reasoning, continues)

    def parser(
        self,
        prompt: ChatPrompt,
        *,
        tokenizer: Tokenizer | None = None,
        calls: bool = True,
        make_id: Callable[[], str] = new_call_id,
    ) -> AnswerParser:
        if not calls:
            return PlainParser(prompt, tokenizer)
        return DsmlParser(prompt, tokenizer, make_id, block=BLOCK)

    def grammar(self, conversation: Conversation, prompt: ChatPrompt, tokenizer: Tokenizer) -> str | None:
        return answer_grammar(conversation, prompt, tokenizer, DsmlCallGrammar(BLOCK))


class _Writer:
    """The prompt so far, with the ranges that are control tokens."""

    def __init__(self, messages: Sequence[Message], thinking: bool) -> None:
        self.text = ""
        self.ranges: list[tuple[int, int]] = []
        self._messages = messages
        last = messages[-1]
        # An answer that a client began without reasoning goes on without.
        self._thinking = thinking and not (last.get("prefix") and not last.get("reasoning_content"))
        askers = ("user", "developer")
        self._last_user = max((n for n, m in enumerate(messages) if m["role"] in askers), default=-1)

    def plain(self, text: str) -> None:
        self.text += text

    def special(self, token: str) -> None:
        self.ranges.append((len(self.text), len(self.text) + len(token)))
        self.text += token

    def write_system(self, n: int, message: Message) -> None:
        self.plain(message["content"])

    def write_user(self, n: int, message: Message) -> None:
        self.special(USER)
        self.plain(message["content"])
        self.special(ASSISTANT)
        self.special(OPEN if self._thinking and n == self._last_user else CLOSE)

    def write_developer(self, n: int, message: Message) -> None:
        """A question of a search agent, with tools of its own."""
        tools = message.get("tools")
        check_tools(tools)
        self.special(USER)
        if tools:
            self.write_tools(tools)
        self.plain(f"\n\n# The user's message is: {message['content']}")
        self.special(ASSISTANT)
        self.special(OPEN if self._thinking and n == self._last_user else CLOSE)

    def write_assistant(self, n: int, message: Message) -> None:
        reasoning, calls = message.get("reasoning_content"), message.get("tool_calls") or []
        if self._thinking and n > self._last_user:
            if not (reasoning or calls):
                raise RequestError(
                    f"messages[{n}] is an answer after the last question without its reasoning; V3.2 "
                    "continues a turn in thinking mode only with reasoning_content; pass it back"
                )
            self.plain(reasoning or "")
            if message.get("prefix") and not message.get("content"):
                return  # the reasoning goes on
            self.special(CLOSE)
        self.plain(message.get("content") or "")
        if calls:
            self.plain("\n\n")
            self._tag("<", "function_calls>\n")
            for call in calls:
                self._write_call(n, call)
            self._tag("</", "function_calls>")
        if not message.get("prefix"):
            self.special(EOS)

    def write_tool(self, n: int, message: Message) -> None:
        """One result; the first of a turn opens the block of results, the last closes it."""
        caller = n - 1
        while caller >= 0 and self._messages[caller]["role"] == "tool":
            caller -= 1
        calls = self._messages[caller].get("tool_calls") or [] if caller >= 0 else []
        position = n - caller
        if position > len(calls):
            raise RequestError(
                f"messages[{n}] is result number {position} of {len(calls)} tool calls; needed is one result "
                "for each call of the assistant message before; check the order of the messages"
            )
        if position == 1:
            self.plain("\n\n<function_results>")
        self.plain(f"\n<result>{message['content']}</result>")
        if position == len(calls):
            self.plain("\n</function_results>\n\n")
            self.special(OPEN if self._thinking and n >= self._last_user else CLOSE)

    def write_tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """The description of the tools, at the end of the system message."""
        self.plain("\n\n")
        self._with_control_tokens(_TOOLS)
        self.plain("\n".join(_json(tool["function"]) for tool in tools) + "\n</functions>\n")

    def _write_call(self, n: int, call: Mapping[str, Any]) -> None:
        function = call["function"]
        self._tag("<", f'invoke name="{function["name"]}">\n')
        arguments = _arguments(n, function)
        for key, value in arguments.items():
            is_text = isinstance(value, str)
            self._tag("<", f'parameter name="{key}" string="{str(is_text).lower()}">')
            self.plain(value if is_text else _json(value))
            self._tag("</", "parameter>\n")
        if not arguments:
            self.plain("\n")  # the release joins the parameters with newlines, and none leave an empty line
        self._tag("</", "invoke>\n")

    def _tag(self, before: str, after: str) -> None:
        self.plain(before)
        self.special(DSML)
        self.plain(after)

    def _with_control_tokens(self, text: str) -> None:
        """Our own text, in which every spelling of a control token is one."""
        while text:
            found = [(text.find(token), token) for token in (DSML, OPEN, CLOSE) if token in text]
            start, token = min(found, default=(len(text), ""))
            self.plain(text[:start])
            if token:
                self.special(token)
            text = text[start + len(token) :]


def _one_system_message(messages: Sequence[Message]) -> list[Message]:
    """System messages at the beginning as one, and developers' there with them: so OpenAI's clients mean it."""
    opening = list(takewhile(lambda m: m["role"] in ("system", "developer") and not m.get("tools"), messages))
    if len(opening) == len(messages):  # nobody asks but the developer
        opening = list(takewhile(lambda m: m["role"] == "system", messages))
    if not opening:
        return list(messages)
    text = "\n\n".join(message["content"] for message in opening)
    return [{"role": "system", "content": text}, *messages[len(opening) :]]


def _arguments(n: int, function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call: JSON text, as the API carries them, or an object already."""
    arguments = function.get("arguments")
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except json.JSONDecodeError as error:
        raise RequestError(
            f"messages[{n}] calls {function.get('name')!r} with arguments that are no JSON ({error}); "
            "pass them back as the model wrote them"
        ) from error
    if not isinstance(value, Mapping):
        raise RequestError(
            f"messages[{n}] calls {function.get('name')!r} with arguments of type {type(value).__name__}; "
            "needed is a JSON object"
        )
    return value


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise RequestError(f"tools, calls or a schema are nested too deeply ({error}); make them flatter") from error
