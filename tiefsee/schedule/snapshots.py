"""Snapshots of the state streams at block boundaries: without one, a prefix cannot be resumed exactly."""

from __future__ import annotations

from collections import OrderedDict


class SnapshotPool:
    """`num_slots` slots, each for the state behind one prefix; the one used longest ago is overwritten."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots - 1, -1, -1))
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slot_of)

    def find(self, key: bytes) -> int | None:
        """The slot that keeps this prefix's state, now the last in line to go."""
        slot = self._slot_of.get(key)
        if slot is not None:
            self._slot_of.move_to_end(key)
        return slot

    def reserve(self, key: bytes) -> int | None:
        """A slot to save this prefix's state in; None if it is kept already or there are no slots."""
        if self.find(key) is not None:
            return None
        if self._free:
            slot = self._free.pop()
        elif self._slot_of:
            _, slot = self._slot_of.popitem(last=False)
        else:
            return None
        self._slot_of[key] = slot
        return slot

    def drop(self, key: bytes) -> None:
        """Forget a prefix whose blocks are gone."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            self._free.append(slot)
