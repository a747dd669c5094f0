"""Blocks of the cache: who holds them, which prefixes they keep, and which goes when room is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class BlockPool:
    """`num_blocks` blocks, counted by reference.

    A block that nobody holds but that keeps a known prefix stays findable until its room is needed; the
    one let go longest ago goes first. `on_evict(key)` hears of each prefix that is lost.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[bytes], None] = lambda key: None) -> None:
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `take` can give, by eviction too."""
        return len(self._empty) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by their prefix, held or not."""
        return len(self._block_of)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_free

    def holders(self, block: int) -> int:
        return self._holders[block]

    def take(self) -> int | None:
        """A block with one holder and no content; None if all are held."""
        if self._empty:
            block = self._empty.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            key = self._key_of.pop(block)
            del self._block_of[key]
            self._on_evict(key)
        else:
            return None
        assert self._holders[block] == 0
        self._holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One holder more, of a block that has content."""
        self._idle.pop(block, None)
        self._holders[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One holder less of each. The last of a chain goes idle first, so that it is evicted first:
        without its beginning a chain is of no use."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Make a full, committed block findable. Of two with the same content the first stays so."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, key: bytes) -> int | None:
        return self._block_of.get(key)
