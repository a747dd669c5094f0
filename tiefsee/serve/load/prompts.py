"""Prompts of a wanted number of tokens, from plain words.

Which words is drawn from the seed, so no two prompts share more of a beginning than they were asked to. How many
words a token is, is told by a tokenizer where there is one, otherwise by the server's own `usage` for two prompts
of different lengths (`calibrate` in client.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_WORDS = """
about after again air all along always and animal answer around ask back because before began behind best better
between big bird book both box boy bring build call came can car carry change children city close cold come could
country cut dark day deep different dog door down draw dream drink drive each early earth eat end enough even every
eye face fall family far farm fast father feel feet few field find fire first fish five fly follow food foot form
found four friend from game garden gave girl give glass gold good great green ground grow half hand happy hard head
hear heart help here high hill home horse hot hour house hundred idea inside island keep kind king know lake land
large last late laugh learn leave left letter light line list listen little live long look lost love made make many
map mark may mean men mile milk mind moon more morning mother mountain mouth move much music must name near never
new next night north nothing notice number ocean often old once only open other our out over page paper part pass
people picture piece place plan plant play point pull put question quick rain ran read ready red rest ride right
river road rock room round run sail same sand saw say school sea second see seed seem sentence ship short side
simple sing sister sit sky sleep slow small snow song soon sound south stand star start stay step still stone stop
story street strong study summer sun sure table take talk tell ten thank thing think thought three time today
together told took town travel tree true turn two under until voice wait walk wall want warm watch water way week
well west wheel where while white whole why wide wild wind window winter wish with wood word work world write year
"""
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Sizer:
    """tokens = `overhead` + words x `tokens_per_word`. `count` counts a text exactly, where a tokenizer is at hand."""

    tokens_per_word: float = 1.3
    overhead: float = 0.0
    source: str = "assumed"
    count: Callable[[str], int] | None = None

    def num_words(self, num_tokens: float) -> int:
        return max(1, round(num_tokens / self.tokens_per_word))


class Prompts:
    """Texts that differ from their first word on, unless they are of one prefix group."""

    def __init__(self, sizer: Sizer, seed: int) -> None:
        self._sizer, self._seed = sizer, seed

    def text(self, number: int, num_tokens: int, prefix_tokens: int = 0, group: int = 0) -> str:
        """A prompt of about `num_tokens` tokens, of which the first `prefix_tokens` are its group's."""
        prefix_tokens = min(prefix_tokens, num_tokens - 1)
        parts = [self.piece(f"prefix:{group}", prefix_tokens)] if prefix_tokens > 0 else []
        parts.append(self.piece(f"request:{number}", num_tokens - prefix_tokens - self._sizer.overhead))
        return " ".join(parts)

    def piece(self, name: str, num_tokens: float) -> str:
        """Words drawn from (seed, name) that make about `num_tokens` tokens."""
        chance = random.Random(f"{self._seed}:{name}")
        sizer = self._sizer
        number = sizer.num_words(num_tokens)
        words = chance.choices(WORDS, k=number)
        for _ in range(4 if sizer.count is not None else 0):
            assert sizer.count is not None
            off = num_tokens - sizer.count(" ".join(words))
            step = int(off / sizer.tokens_per_word) or (off > 0) - (off < 0)
            if abs(off) < 1 or len(words) + step < 1:
                break
            words = words + chance.choices(WORDS, k=step) if step > 0 else words[:step]
        return " ".join(words)
