"""The block pool against a model of it, and the order in which prefixes are lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.schedule.driver import small_config
from tiefsee.schedule import Request
from tiefsee.schedule.blocks import BlockPool
from tiefsee.schedule.prefix import PrefixCache
from tiefsee.schedule.snapshots import SnapshotPool


class Pool(RuleBasedStateMachine):
    """Random holders take, share and release chains; the model is a list of the chains they hold."""

    @initialize(num_blocks=st.integers(1, 6))
    def start(self, num_blocks):
        self.lost: list[bytes] = []
        self.pool = BlockPool(num_blocks, on_evict=self.lost.append)
        self.chains: list[list[int]] = []
        self.published: dict[bytes, int] = {}

    @rule(length=st.integers(1, 4), name=st.integers(0, 3))
    def take(self, length, name):
        chain = []
        for index in range(length):
            free = self.pool.num_free
            block = self.pool.take()
            assert (block is None) == (free == 0)
            if block is None:
                break
            chain.append(block)
            key = bytes([name, index])
            for lost in self.lost:
                del self.published[lost]
            self.lost.clear()
            self.pool.publish(block, key)
            self.published.setdefault(key, block)  # the first stays
        self.chains.append(chain)

    @rule(name=st.integers(0, 3))
    def hit(self, name):
        chain = []
        while (block := self.pool.find(bytes([name, len(chain)]))) is not None:
            self.pool.hold(block)
            chain.append(block)
        self.chains.append(chain)

    @rule(data=st.data())
    def release(self, data):
        if self.chains:
            self.pool.release(self.chains.pop(data.draw(st.integers(0, len(self.chains) - 1))))

    @invariant()
    def blocks_are_conserved_and_counted(self):
        if not hasattr(self, "pool"):
            return
        held = Counter(block for chain in self.chains for block in chain)
        assert all(self.pool.holders(block) == held[block] for block in range(self.pool.num_blocks))
        assert self.pool.num_used == len(held)
        assert self.pool.num_free + self.pool.num_used == self.pool.num_blocks
        assert self.pool.num_cached == len(self.published)
        for key, block in self.published.items():
            assert self.pool.find(key) == block


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = Pool.TestCase


def chain(pool: BlockPool, name: str, length: int) -> list[int]:
    blocks = []
    for index in range(length):
        block = pool.take()
        assert block is not None
        pool.publish(block, f"{name}{index}".encode())
        blocks.append(block)
    return blocks


def test_the_end_of_the_oldest_chain_goes_first():
    lost: list[bytes] = []
    pool = BlockPool(5, on_evict=lost.append)
    old, new = chain(pool, "old", 3), chain(pool, "new", 2)
    pool.release(old)
    pool.release(new)
    while pool.take() is not None:
        pass
    assert lost == [b"old2", b"old1", b"old0", b"new1", b"new0"]


def test_a_hit_makes_a_chain_young_again():
    lost: list[bytes] = []
    pool = BlockPool(4, on_evict=lost.append)
    first, second = chain(pool, "a", 2), chain(pool, "b", 2)
    pool.release(first)
    pool.release(second)
    for block in first:
        pool.hold(block)
    pool.release(first)
    pool.take()
    pool.take()
    assert lost == [b"b1", b"b0"]


def test_snapshots_used_longest_ago_are_overwritten():
    pool = SnapshotPool(2)
    first, second = pool.reserve(b"a"), pool.reserve(b"b")
    assert pool.reserve(b"a") is None, "kept already"
    assert pool.find(b"a") == first  # b is the oldest now
    assert pool.reserve(b"c") == second
    assert pool.find(b"b") is None
    pool.drop(b"a")
    assert pool.reserve(b"d") == first
    assert len(pool) == 2
    assert SnapshotPool(0).reserve(b"a") is None


def test_a_snapshot_goes_with_its_last_block():
    prefixes = PrefixCache(small_config(num_blocks=1))
    block = prefixes.blocks.take()
    prefixes.blocks.publish(block, b"key")
    prefixes.snapshots.reserve(b"key")
    prefixes.blocks.release([block])
    prefixes.blocks.take()
    assert prefixes.snapshots.find(b"key") is None


def test_keys_name_the_whole_prefix_and_the_salt():
    def keys(tokens, salt=None):
        request = Request("", tokens, len(tokens), 1, salt=salt)
        return [request.block_hash(i, 4) for i in range(len(tokens) // 4)]

    tokens = list(range(12))
    assert keys(tokens) == keys([*tokens, 5])
    assert keys(tokens)[:2] == keys([*tokens[:8], 0, 0, 0, 0])[:2]
    assert keys(tokens)[2] != keys([99, *tokens[1:]])[2]  # same last block, other beginning
    assert not set(keys(tokens)) & set(keys(tokens, "a"))
    assert len({*keys([1, 1, 1, 1] * 3)}) == 3
