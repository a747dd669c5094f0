"""Text and conversations: tokens, incremental text, chat formats, requests in and answers out. No torch."""

from tiefsee.text.answer import (
    AnswerParser,
    CallArguments,
    CallBegin,
    CallEnd,
    ParsedAnswer,
    Piece,
    Reasoning,
    Text,
    ToolCall,
    join,
)
from tiefsee.text.bodies import read_chat, read_messages, read_responses
from tiefsee.text.chat import load_chat_format
from tiefsee.text.conversation import Conversation, ResponseFormat
from tiefsee.text.detokenise import Detokeniser
from tiefsee.text.prompt import ChatFormat, ChatPrompt, render_conversation
from tiefsee.text.reasoning import ReasoningSplitter, split_reasoning
from tiefsee.text.tokenizer import Tokenizer

__all__ = [
    "AnswerParser",
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "ChatFormat",
    "ChatPrompt",
    "Conversation",
    "Detokeniser",
    "ParsedAnswer",
    "Piece",
    "Reasoning",
    "ReasoningSplitter",
    "ResponseFormat",
    "Text",
    "Tokenizer",
    "ToolCall",
    "join",
    "load_chat_format",
    "read_chat",
    "read_messages",
    "read_responses",
    "render_conversation",
    "split_reasoning",
]
