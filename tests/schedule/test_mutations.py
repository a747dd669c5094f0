"""The fake device can fail: each of these bugs, put into the scheduler, makes some entry read a wrong row."""

from __future__ import annotations

import pytest

from tests.schedule.driver import simulate, small_config
from tests.schedule.fake_device import FakeDevice, WrongRow
from tiefsee.schedule import CopyBlock, CopyRing, Request, RestoreSnapshot, SaveSnapshot, Scheduler
from tiefsee.schedule.blocks import BlockPool
from tiefsee.schedule.prefix import PrefixCache


def after_schedule(change):
    """A mutation that lets `change(scheduler, batch)` spoil every batch."""

    def mutate(monkeypatch):
        original = Scheduler.schedule

        def schedule(self):
            batch = original(self)
            change(self, batch)
            return batch

        monkeypatch.setattr(Scheduler, "schedule", schedule)

    return mutate


def lose(kind):
    """Orders of one kind are never carried out."""

    def change(scheduler, batch):
        batch.before = [order for order in batch.before if not isinstance(order, kind)]

    return after_schedule(change)


@after_schedule
def saves_come_last(scheduler, batch):
    batch.before.sort(key=lambda order: isinstance(order, SaveSnapshot))


def publishes_on_write(monkeypatch):
    """Blocks can be found as soon as they are to be written, before anything is computed or committed."""
    original = Scheduler._entry

    def entry(self, request, num_drafts, batch):
        made = original(self, request, num_drafts, batch)
        if made is not None:
            size = self.config.block_tokens
            written = Request("", request.tokens[: made.start] + made.tokens, 0, 0, salt=request.salt)
            for index in range(made.start // size, len(written.tokens) // size):
                self.blocks.publish(made.block_table[index], written.block_hash(index, size))
        return made

    monkeypatch.setattr(Scheduler, "_entry", entry)


def hashes_are_not_chained(monkeypatch):
    def block_hash(self, index, size):
        return repr((self.salt, self.tokens[index * size : (index + 1) * size])).encode()

    monkeypatch.setattr(Request, "block_hash", block_hash)


def salt_is_ignored(monkeypatch):
    def block_hash(self, index, size):
        return repr(self.tokens[: (index + 1) * size]).encode()

    monkeypatch.setattr(Request, "block_hash", block_hash)


def steps_pass_boundaries(monkeypatch):
    """The state is saved at the first step's end behind a boundary, in the belief that it is that of the boundary."""
    original = PrefixCache.publish

    def publish(self, request, before):
        now, size = request.num_committed_tokens, self._config.block_tokens
        order = original(self, request, before)
        if order is None and self._config.enable_prefix_cache and now // size > before // size:
            order = self._keep_state(request, now // size)
        return order

    monkeypatch.setattr(PrefixCache, "tokens_to_boundary", lambda self, request: None)
    monkeypatch.setattr(PrefixCache, "publish", publish)


def eviction_forgets_no_key(monkeypatch):
    original = BlockPool.take

    def take(self):
        known = dict(self._key_of)
        block = original(self)
        if block in known:
            self._block_of[known[block]] = block
            self._key_of[block] = known[block]
        return block

    monkeypatch.setattr(BlockPool, "take", take)


def rings_have_no_room_for_drafts(monkeypatch):
    monkeypatch.setattr(FakeDevice, "_ring_rows", lambda self, stream: stream.ring_rows(0))


MUTATIONS = {
    "publishes on write": publishes_on_write,
    "restores nothing": lose(RestoreSnapshot),
    "saves nothing": lose(SaveSnapshot),
    "copies no block": lose(CopyBlock),
    "copies no ring": lose(CopyRing),
    "saves come last": saves_come_last,
    "hashes are not chained": hashes_are_not_chained,
    "salt is ignored": salt_is_ignored,
    "steps pass boundaries": steps_pass_boundaries,
    "eviction forgets no key": eviction_forgets_no_key,
    "rings have no room for drafts": rings_have_no_room_for_drafts,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_bug_is_a_wrong_row(name, monkeypatch):
    MUTATIONS[name](monkeypatch)
    with pytest.raises(WrongRow):
        live(100)


def live(num_lives):
    for seed in range(num_lives):
        simulate(small_config(), seed)
