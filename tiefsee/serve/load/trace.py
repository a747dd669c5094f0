"""Requests from a file, one JSON object per line (or one JSON list), in any of three forms.

ours       {"arrival_s": 0.4, "prompt": "...", "max_tokens": 100}; "messages" or "prompt_tokens" (made up) for "prompt"
Mooncake   {"timestamp": 400, "input_length": 900, "output_length": 40, "hash_ids": [3, 8]}; milliseconds; each id is a
           block of 512 tokens, so equal ids share their text
ShareGPT   {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}; no times
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError

BLOCK_TOKENS = 512  # of Mooncake's hash_ids
TOKENS_PER_WORD = 1.3  # of an answer in ShareGPT's form, whose tokens are not counted


@dataclass(frozen=True)
class Line:
    """One request of a trace. A prompt is text, messages, or a number of tokens to make up."""

    arrival_s: float | None = None
    prompt: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    blocks: tuple[int, ...] = ()


def read_trace(path: Path) -> list[Line]:
    """The lines of a file, by time of arrival; ConfigError with the line that means nothing."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    whole = text.lstrip().startswith("[")
    rows = [(1, text)] if whole else [(n, row) for n, row in enumerate(text.splitlines(), 1) if row.strip()]
    lines = []
    for number, row in rows:
        try:
            found = json.loads(row)
            lines += [_line(item) for item in (found if whole else [found])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: {str(error)[:80] or 'no request'}; needed is an object with prompt, messages, "
                "prompt_tokens, input_length or conversations (docs/bench.md)"
            ) from None
    if not lines:
        raise ConfigError(f"{path} holds no requests")
    timed = [line.arrival_s is not None for line in lines]
    if any(timed) and not all(timed):
        raise ConfigError(f"{path}: {sum(timed)} of {len(lines)} lines have a time of arrival; needed is all or none")
    return sorted(lines, key=lambda line: line.arrival_s or 0.0)


def _line(item: dict[str, Any]) -> Line:
    if "conversations" in item:
        turns = [turn["value"] for turn in item["conversations"]]
        words = len(turns[1].split()) if len(turns) > 1 else 0
        return Line(prompt=_text(turns[0]), max_tokens=max(1, round(words * TOKENS_PER_WORD)) if words else None)
    if "input_length" in item:
        return Line(
            arrival_s=_number(item["timestamp"]) / 1000 if "timestamp" in item else None,
            prompt_tokens=_count(item["input_length"]), max_tokens=_count(item["output_length"]),
            blocks=tuple(int(block) for block in item.get("hash_ids", ())),
        )  # fmt: skip
    if not {"prompt", "messages", "prompt_tokens"} & item.keys():
        raise ValueError("no prompt")
    return Line(
        arrival_s=_number(item["arrival_s"]) if "arrival_s" in item else None,
        prompt=_text(item["prompt"]) if "prompt" in item else None,
        messages=tuple(dict(message) for message in item["messages"]) if "messages" in item else None,
        prompt_tokens=_count(item["prompt_tokens"]) if "prompt_tokens" in item else None,
        max_tokens=_count(item["max_tokens"]) if item.get("max_tokens") is not None else None,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a prompt is {json.dumps(value)[:40]}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a number of tokens is {json.dumps(value)[:40]}")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"a time is {json.dumps(value)[:40]}")
    return float(value)
