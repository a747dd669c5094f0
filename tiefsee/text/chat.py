"""Which chat format a checkpoint has, found by what lies in its folder and never by its name.

1. encoding/encoding_dsv4.py or encoding_dsv32.py: V4 and V3.2 publish their format as code.
   (It is not run: `encoding_v4.py` and `encoding_v32.py` here write the same.)
2. chat_template.jinja, or chat_template in tokenizer_config.json: V2, V3, V3.1, R1, V3.2-Exp.
3. Neither: a base model, which continues text and cannot chat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError, UnsupportedModel
from tiefsee.text.answer import AnswerParser, new_call_id
from tiefsee.text.conversation import Conversation, Message, ResponseFormat
from tiefsee.text.encoding_v4 import V4Format
from tiefsee.text.encoding_v32 import V32Format
from tiefsee.text.grammar import answer_grammar
from tiefsee.text.parse import PlainParser
from tiefsee.text.prompt import ChatFormat, ChatPrompt, check_messages, refuse_effort
from tiefsee.text.template import TemplateFormat
from tiefsee.text.tokenizer import Tokenizer, read_json, token_text

CHOICES = ("auto", "template", "v3.2", "v4", "raw")


def load_chat_format(folder: Path, choice: str = "auto") -> ChatFormat:
    """The chat format of the checkpoint in `folder`.

    `choice` other than "auto" overrides what was found: for a copy that lost its encoding file, or "raw"
    to concatenate the contents for a base model. Raises ConfigError for a base model, and
    UnsupportedModel for a format of a release that tiefsee does not run.
    """
    if choice not in CHOICES:
        raise ConfigError(f"chat format is {choice!r}; it must be one of {', '.join(CHOICES)}")
    settings_path = folder / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.is_file() else {}
    if choice == "raw":
        return RawFormat(token_text(settings.get("bos_token")) if settings.get("add_bos_token") else None)
    encoding = _encoding_format(folder, choice)
    if encoding is not None:
        return encoding
    source = _template_source(folder, settings)
    if source is not None:
        return TemplateFormat(source, token_text(settings.get("bos_token")), token_text(settings.get("eos_token")))
    raise ConfigError(
        f"{folder} holds a base model: found neither a chat template nor an encoding folder, and chatting "
        "needs one; continue text with `tiefsee run`, or pass --raw to chat without a format"
    )


class RawFormat:
    """No format at all: the contents one after the other, for base models. There are no roles in it."""

    name = "raw"
    efforts: tuple[str, ...] = ()

    def __init__(self, bos_token: str | None = None) -> None:
        self._bos = bos_token or ""

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
        refuse_effort(effort, "raw text")
        if thinking or tools:
            raise ConfigError("thinking or tools were asked for, but raw text has neither; leave them out")
        text = self._bos + "\n".join(message.get("content") or "" for message in messages)
        ranges = ((0, len(self._bos)),) if self._bos else ()
        return ChatPrompt(text, ranges, starts_in_reasoning=False, continues=True)

    def parser(
        self,
        prompt: ChatPrompt,
        *,
        tokenizer: Tokenizer | None = None,
        calls: bool = True,
        make_id: Callable[[], str] = new_call_id,
    ) -> AnswerParser:
        return PlainParser(prompt, tokenizer)

    def grammar(self, conversation: Conversation, prompt: ChatPrompt, tokenizer: Tokenizer) -> str | None:
        return answer_grammar(conversation, prompt, tokenizer, None)


def _encoding_format(folder: Path, choice: str) -> ChatFormat | None:
    """The format that was chosen, or that the encoding folder's file name says."""
    v4_file = folder / "encoding" / "encoding_dsv4.py"
    if choice == "v4" or (choice == "auto" and v4_file.is_file()):
        return V4Format.from_encoding_file(v4_file) if v4_file.is_file() else V4Format()
    if choice == "v3.2" or (choice == "auto" and (folder / "encoding" / "encoding_dsv32.py").is_file()):
        return V32Format()
    unknown = sorted((folder / "encoding").glob("encoding_*.py")) if choice == "auto" else []
    if unknown:
        raise UnsupportedModel(
            f"the chat format of {folder} is {unknown[0].name}, which tiefsee does not know; it writes those "
            "of V2 to V4; choose one with --chat-format if the release says that it fits"
        )
    return None


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The Jinja source; a file of its own comes before the entry in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    entry = settings.get("chat_template")
    if isinstance(entry, list):  # several named templates; only the default one is for chatting
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, Mapping)}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None
