"""The grammar of a constrained answer: Lark in llguidance's dialect.

    answer  =  reasoning? ( text | text? calls | JSON of a schema | regular expression | the client's grammar )

Control tokens are named by id (`<[128822]>`) and no text matches one, so a call cannot begin but where the
grammar lets it, and the reasoning cannot be left open.

What of a tool's schema cannot be enforced is ignored, as the API has it, unless the tool says `strict`; then
it is refused. A response schema is always strict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tiefsee.errors import ConfigError, RequestError
from tiefsee.text.control import CLOSE, OPEN
from tiefsee.text.conversation import Conversation, ResponseFormat, Tool
from tiefsee.text.lark import ANY, NEWLINES, Rules, json_rule, lark_regex, rename_start
from tiefsee.text.prompt import ChatPrompt
from tiefsee.text.schema_check import check_schema
from tiefsee.text.tokenizer import Tokenizer

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


class CallGrammar(Protocol):
    """How one format writes tool calls."""

    def write(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool, text: str) -> tuple[str, str]:
        """Add the rules; returns what stands for the calls alone, and for optional text with optional calls.

        `text` is the terminal that text matches.
        """
        ...


def answer_grammar(
    conversation: Conversation,
    prompt: ChatPrompt,
    tokenizer: Tokenizer,
    calls: CallGrammar | None,
    *,
    may_open: bool = False,
) -> str | None:
    """The grammar of the answer to `prompt`; None if nothing is asked of it.

    `may_open`: the model, and not the prompt, opens the reasoning (the first R1 template).
    """
    wanted = conversation.response_format
    if not conversation.tools and wanted.kind == "text":
        return None
    if conversation.continues and (wanted.kind != "text" or conversation.tool_choice in ("required", "named")):
        raise RequestError(
            "the last message is an answer to be continued, and its rest was asked to be "
            f"{'tool calls' if wanted.kind == 'text' else wanted.kind}; that cannot be enforced from the middle; "
            "leave the prefix or the constraint out"
        )
    rules = Rules(tokenizer)
    reasoning = ""
    if prompt.starts_in_reasoning:
        reasoning = f"{rules.add('REASONING', ANY)} {rules.control(CLOSE)} "
    elif may_open and not prompt.continues:
        reasoning = f"({rules.control(OPEN)} {rules.add('REASONING', ANY)} {rules.control(CLOSE)})? "
    answer = _answer(rules, conversation, calls)
    return f"start: {reasoning}({answer})\n" + rules.source()


def _answer(rules: Rules, conversation: Conversation, calls: CallGrammar | None) -> str:
    """What comes after the reasoning."""
    wanted = conversation.response_format
    text = rules.add("TEXT", ANY)
    response = text if wanted.kind == "text" else _response(rules, wanted)
    if not conversation.may_call:
        return response
    if calls is None:
        raise ConfigError(f"{len(conversation.tools)} tools were given, but this chat format has no tool calls")
    tools, choice = conversation.tools, conversation.tool_choice
    parallel = conversation.parallel_tool_calls and choice != "named"
    if choice == "named":
        tools = tuple(tool for tool in tools if tool["function"]["name"] == conversation.tool_name)
        if not tools:
            names = ", ".join(tool["function"]["name"] for tool in conversation.tools)
            raise RequestError(f"tool_choice names {conversation.tool_name!r}, but the tools are {names}")
    only_calls, text_and_calls = calls.write(rules, tools, parallel=parallel, text=text)
    if choice != "auto":
        return only_calls
    return text_and_calls if wanted.kind == "text" else f"{response} | {only_calls}"


def _response(rules: Rules, wanted: ResponseFormat) -> str:
    newlines = rules.add("NEWLINES", NEWLINES)
    if wanted.kind == "json_object":
        return f"{newlines}? {rules.add('json', json_rule({'type': 'object'}))}"
    if wanted.kind == "json_schema":
        return f"{newlines}? {rules.add('json', json_rule(read_schema(wanted.source)))}"
    if wanted.kind == "regex":
        return rules.add("PATTERN", lark_regex(wanted.source))
    if not re.search(r"^\s*start\s*(\[[^\]]*\])?\s*:", wanted.source, re.MULTILINE):
        raise RequestError("the grammar has no rule `start`; it must be Lark source with one")
    rules.add("// the client's grammar", "\n" + rename_start(wanted.source))
    return "client_start"


def read_schema(source: str) -> Any:
    """A response schema; raises RequestError if it is none."""
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the response schema is no JSON ({error}); needed is a JSON schema") from error
    check_schema(schema, "the response schema")
    return schema


def parameters_of(tool: Tool) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are always an object; none means no parameters."""
    parameters = tool["function"].get("parameters")
    if parameters is None or parameters == {}:
        return NO_PARAMETERS
    if not isinstance(parameters, Mapping):
        name = tool["function"]["name"]
        raise RequestError(f"tool {name!r} has parameters {parameters!r:.60}; needed is the JSON schema of an object")
    check_schema(parameters, f"tool {tool['function']['name']!r}: parameters")
    return parameters if "type" in parameters else {"type": "object", **parameters}
