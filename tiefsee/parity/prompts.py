"""What the two sides are asked: built-in prompts, or a file of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiefsee.engine import EngineCore
from tiefsee.errors import ConfigError
from tiefsee.spec.model import ModelSpec

SHORT = {
    "prose": "The sea was grey that morning, and nobody on the pier",
    "code": "def median(values):\n    ordered = sorted(values)\n",
    "Chinese": "大海在清晨是灰色的，码头上没有人",
}
LONG = (
    "A lighthouse keeper writes down what passes: a coaster with timber, two trawlers, a yacht without its mast. "
    "At noon he climbs the stairs again, {n} steps of them, cleans the lens, winds the clock, and notes the wind. "
    "Numbers matter to him. On day {n} the barometer stood at {p}, the swell came from the west, and no mail came. "
    "He wonders whether the next keeper will read any of it, or only count the pages.\n"
)
MIN_LONG_TOKENS = 600
# Tokens of the context that no prompt takes, for what follows it; and what the short prompts need.
ROOM = 64
LEAST_ROOM = 96
# The long prompt goes on so far behind the place where an indexer begins to choose.
BEYOND = 256


def built_in(core: EngineCore, long_tokens: int | None = None) -> dict[str, tuple[int, ...]]:
    """Three short prompts, and a long one in which every indexer has more entries than it may pick.

    Without a tokenizer random tokens stand for text. Cut to the context of the engine.
    """
    wanted = max(MIN_LONG_TOKENS, sparse_from(core.spec) + BEYOND) if long_tokens is None else long_tokens
    room = core.max_context - ROOM
    if wanted < 1:
        raise ConfigError(f"--long is {long_tokens}; needed 1 or more")
    if room < LEAST_ROOM:
        raise ConfigError(f"--max-context is {core.max_context}; the built-in prompts need {ROOM + LEAST_ROOM}")
    if core.tokenizer is None:
        dice = random.Random(0)
        lengths = {"short": 24, "middle": 90, "long": min(wanted, room)}
        return {n: tuple(dice.randrange(core.spec.vocab_size) for _ in range(k)) for n, k in lengths.items()}
    found = {name: tuple(core.tokenizer.encode(text)) for name, text in SHORT.items()}
    long: list[int] = []
    day = 1
    while len(long) < min(wanted, room):
        text = LONG.format(n=day, p=990 + 7 * day % 40)
        long += core.tokenizer.encode(text) if not long else core.tokenizer.encode(text, add_bos=False)
        day += 1
    return {**found, "long": tuple(long[: min(wanted, room)])}


def sparse_from(spec: ModelSpec) -> int:
    """Tokens from which on every indexer has a choice: 2,048 for V3.2 and for V4; 0 without one."""
    found = [0]
    for layer in spec.layers:
        attention: Any = layer.attention
        if attention.indexer is not None:
            found.append(attention.indexer.index_topk * max(1, getattr(attention, "ratio", 1)))
    return max(found)


def from_file(path: Path, core: EngineCore) -> dict[str, tuple[int, ...]]:
    """Prompts of a file: one a line, as text; or, named .jsonl, objects with "prompt" or "tokens", and perhaps "name".

    Raises ConfigError for what cannot be read, is empty, or is longer than the engine's context.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {path}: {error}") from error
    found: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(lines, 1):
        entry: Any = {"prompt": line}
        if path.suffix == ".jsonl":
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
        name, tokens = _prompt(entry, f"{path}, line {number}", core)
        found[f"{number}: {name[:24]}"] = tokens
    if not found:
        raise ConfigError(f"{path} holds no prompt; needed one a line")
    return found


def _prompt(entry: Any, where: str, core: EngineCore) -> tuple[str, tuple[int, ...]]:
    if not isinstance(entry, Mapping) or not ({"prompt", "tokens"} & set(entry)):
        raise ConfigError(f'{where} has no "prompt" (text) and no "tokens" (ids)')
    if "tokens" in entry:
        tokens = entry["tokens"]
        vocabulary = core.spec.vocab_size
        if not isinstance(tokens, list) or not all(isinstance(t, int) and 0 <= t < vocabulary for t in tokens):
            raise ConfigError(f"{where}: tokens must be a list of ids below {vocabulary}")
        name = str(entry.get("name", "tokens"))
    else:
        if core.tokenizer is None:
            raise ConfigError(f'{where} is text, and this model has no tokenizer.json; give "tokens" in a .jsonl')
        tokens = core.tokenizer.encode(str(entry["prompt"]))
        name = str(entry.get("name", "text"))  # reports travel further than prompts: no word of the text is in them
    if not 0 < len(tokens) < core.max_context - ROOM:
        raise ConfigError(
            f"{where} has {len(tokens)} tokens; needed 1 to {core.max_context - ROOM - 1}. Raise --max-context for more"
        )
    return name, tuple(tokens)
