"""Answers as a model writes them, for the tests of parsers and grammars: text in which control tokens are marked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from tiefsee.text import AnswerParser, ParsedAnswer, join
from tiefsee.text.tokenizer import ANSWER_TOKENS, Tokenizer

TOKENS = re.compile("|".join(map(re.escape, ANSWER_TOKENS)))
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "units": {"enum": ["metric", "imperial"]},
                "at": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
            },
            "required": ["place", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def ranges_of(text: str) -> list[tuple[int, int]]:
    """The ranges of an answer in which every spelling of a control token is one."""
    return [found.span() for found in TOKENS.finditer(text)]


def pieces_of(text: str, ranges: Sequence[tuple[int, int]], cuts: Iterable[int]):
    """The text cut at `cuts`, except inside a control token, each piece with its own ranges."""
    inside = {place for start, end in ranges for place in range(start + 1, end)}
    edges = [0, *sorted(cut for cut in cuts if cut not in inside), len(text)]
    for start, end in itertools.pairwise(edges):
        yield text[start:end], [(a - start, b - start) for a, b in ranges if start <= a and b <= end]


def parse(parser: AnswerParser, text: str, ranges=None, cuts: Iterable[int] = ()) -> ParsedAnswer:
    """The whole answer, fed in pieces."""
    if ranges is None:
        edges = [0, *sorted(cuts), len(text)]
        pieces = [(text[a:b], None) for a, b in itertools.pairwise(edges)]
    else:
        pieces = list(pieces_of(text, ranges, cuts))
    out = [piece for text, special in pieces for piece in parser.feed(text, special)]
    return join([*out, *parser.flush()])


def encode(tokenizer: Tokenizer, text: str, ranges=None) -> list[int]:
    """Token ids of an answer; without ranges, every spelling of a control token is one."""
    return tokenizer.encode_ranges(text, ranges_of(text) if ranges is None else ranges)
