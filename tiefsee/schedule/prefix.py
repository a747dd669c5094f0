"""Which prefixes are kept, and how they are found again: blocks and snapshots under one chained key."""

from __future__ import annotations

from tiefsee.schedule.batch import SaveSnapshot
from tiefsee.schedule.blocks import BlockPool
from tiefsee.schedule.config import SchedulerConfig
from tiefsee.schedule.request import Request
from tiefsee.schedule.snapshots import SnapshotPool


class PrefixCache:
    """The block and snapshot pools of one scheduler.

    A model with state streams resumes only where a snapshot was kept. Kept boundaries: every n-th, the
    last one of the prompt, and, of those passed while decoding, the latest: it will be the end of the turn.
    A snapshot can be taken only while exactly that many tokens are committed, so steps are cut there.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.snapshots = SnapshotPool(config.num_snapshots)
        self.blocks = BlockPool(config.num_blocks, on_evict=self.snapshots.drop)

    def find(self, request: Request) -> tuple[list[int], int | None]:
        """Blocks of the longest kept prefix, and its snapshot if the model needs one.

        At least one token is left to compute, since its logits are wanted; if those of the whole prompt
        are, nothing may be skipped.
        """
        config = self._config
        usable = config.keeps_snapshots if config.needs_rings else config.enable_prefix_cache
        if not usable or request.needs_prompt_logprobs:
            return [], None
        chain: list[int] = []
        for index in range((len(request.tokens) - 1) // config.block_tokens):
            block = self.blocks.find(request.block_hash(index, config.block_tokens))
            if block is None:
                break
            chain.append(block)
        if not config.needs_rings:
            return chain, None
        while chain:
            snapshot = self.snapshots.find(request.block_hash(len(chain) - 1, config.block_tokens))
            if snapshot is not None:
                return chain, snapshot
            chain.pop()
        return [], None

    def tokens_to_boundary(self, request: Request) -> int | None:
        """Tokens up to the next boundary whose state is to be kept: a step is cut there. None: no cut."""
        if not self._config.keeps_snapshots:
            return None
        size, every = self._config.block_tokens, self._config.snapshot_every
        done, last = request.num_committed_tokens // size, self._last_boundary(request)
        boundary = done + 1
        if boundary < last:
            boundary = min(last, (done // every + 1) * every) if every else last
        return boundary * size - request.num_committed_tokens

    def publish(self, request: Request, before: int) -> SaveSnapshot | None:
        """Make the blocks findable that a commit has filled, which stood at `before` tokens.

        Returns the order to save the request's state, if it stands at a boundary that is kept.
        """
        size, now = self._config.block_tokens, request.num_committed_tokens
        if now // size == before // size or not self._config.enable_prefix_cache:
            return None
        for index in range(before // size, now // size):
            self.blocks.publish(request.block_table[index], request.block_hash(index, size))
        if now % size or not self._config.keeps_snapshots:
            return None
        return self._keep_state(request, now // size)

    def _keep_state(self, request: Request, boundary: int) -> SaveSnapshot | None:
        size, every = self._config.block_tokens, self._config.snapshot_every
        is_nth = every > 0 and boundary % every == 0
        if not is_nth and boundary < self._last_boundary(request):
            return None  # a step that was cut here for another reason
        in_answer = boundary > request.num_prompt_tokens // size
        if in_answer and request.turn_snapshot is not None:
            self.snapshots.drop(request.turn_snapshot)  # the turn has gone on
            request.turn_snapshot = None
        key = request.block_hash(boundary - 1, size)
        snapshot = self.snapshots.reserve(key)
        if snapshot is None:
            return None
        if in_answer and not is_nth:
            request.turn_snapshot = key
        assert request.ring is not None
        return SaveSnapshot(request.ring, snapshot, boundary * size)

    def _last_boundary(self, request: Request) -> int:
        """The last boundary behind which a known token is left, so that the same prompt can resume there.

        A prompt that ends at a boundary is cut there too, for the turn that will follow it.
        """
        return (len(request.tokens) - 1) // self._config.block_tokens
