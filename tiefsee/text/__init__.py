"""Text and conversations: tokens, incremental text, chat formats, reasoning. No torch."""

from tiefsee.text.chat import load_chat_format
from tiefsee.text.detokenise import Detokeniser
from tiefsee.text.prompt import ChatFormat, ChatPrompt
from tiefsee.text.reasoning import ReasoningSplitter, split_reasoning
from tiefsee.text.tokenizer import Tokenizer

__all__ = [
    "ChatFormat",
    "ChatPrompt",
    "Detokeniser",
    "ReasoningSplitter",
    "Tokenizer",
    "load_chat_format",
    "split_reasoning",
]
