"""The engine's heart: one pool of like devices, one model, one loop.

    step:  schedule -> run -> accept -> commit -> draft -> tell

`EngineCore` is synchronous and belongs to one thread; `LLM` and the async `Engine` drive it.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tiefsee.engine import transfer
from tiefsee.engine.cache import CachePlan, StreamCache
from tiefsee.engine.config import EngineConfig, scheduler_config
from tiefsee.engine.delta import Delta, FinishReason
from tiefsee.engine.fingerprint import network_fingerprint
from tiefsee.engine.generation import Generation, sample_seed
from tiefsee.engine.guide import Guide, Matcher
from tiefsee.engine.moved import Moved, MovedDrafts
from tiefsee.engine.ranks import Followers
from tiefsee.engine.runner import Runner, StepResult
from tiefsee.engine.sampling import Sampling
from tiefsee.engine.speculate import Committed, Drafter, DraftLength
from tiefsee.errors import ConfigError, InvalidSampling, InvalidToken, NoToken, PromptTooLong, RequestError
from tiefsee.model import Network
from tiefsee.schedule import Accepted, Batch, Entry, Request, Scheduler, handover
from tiefsee.spec.fields import token_ids
from tiefsee.spec.model import ModelSpec
from tiefsee.text import Tokenizer


@dataclass
class Counters:
    """What has happened since the start; for reports and metrics."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_hit_tokens: int = 0
    drafted_tokens: int = 0
    accepted_drafts: int = 0

    @property
    def acceptance(self) -> float | None:
        """Accepted share of the drafts that were verified."""
        return self.accepted_drafts / self.drafted_tokens if self.drafted_tokens else None


class EngineCore:
    """One model on one device: requests in, deltas out."""

    def __init__(
        self, network: Network, plan: CachePlan, max_context: int, config: EngineConfig,
        tokenizer: Tokenizer | None = None, generation_config: Mapping[str, Any] | None = None,
        folder: Path | None = None, fingerprint: str | None = None, followers: Followers | None = None,
    ) -> None:  # fmt: skip
        self.spec: ModelSpec = network.spec
        self.config, self.plan, self.max_context = config, plan, max_context
        self.tokenizer, self.generation_config = tokenizer, dict(generation_config or {})
        self.notes: list[str] = []  # of the load: what the user should know
        self.folder = folder or Path()  # of the checkpoint: chat formats are read from it
        self._fingerprint = fingerprint
        self.runner = Runner(network, StreamCache(plan, network.device, network.ops), followers)
        self.scheduler = Scheduler(scheduler_config(config, plan, max_context))
        self.counters = Counters()
        self.draft_length = DraftLength(plan.max_draft)
        self.admitted: dict[str, None] = {}  # tickets of moves that came in, the oldest first
        self.guide: Guide | None = None  # compiles constraints; there are none without a tokenizer
        self._drafter = Drafter(self.runner, plan.max_draft) if plan.max_draft else None
        self._generations: dict[str, Generation] = {}
        self._ids = itertools.count()
        self.eos_ids = check_generation_config(self.generation_config, self.spec)
        self._is_stuck = False
        if tokenizer is not None:
            self.guide = Guide(tokenizer, self.spec.vocab_size, self.eos_ids)

    def close(self) -> None:
        """End the other ranks, if there are any. The engine cannot step any more then."""
        if self.runner.followers is not None:
            self.runner.followers.close()

    # ------------------------------------------------------------------------------ requests

    def add(
        self, prompt: Sequence[int], sampling: Sampling, on_delta: Callable[[int, Delta], None],
        *, priority: int = 0, salt: str | None = None, keep_logits: bool = False,
    ) -> list[Generation]:  # fmt: skip
        """Queue one prompt for its n answers; `on_delta` hears of (index of the answer, what was added).

        Raises RequestError if the prompt can never be served; nothing is queued then.
        """
        sampling = sampling.with_defaults(self.generation_config)
        self._check(prompt, sampling)
        keeps_rows = keep_logits or sampling.prompt_logprobs is not None
        matcher = self.matcher(sampling)
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(62))
        group = []
        for index in range(sampling.n):
            room = self.max_context - len(prompt)
            request = Request(
                request_id=self.new_id(),
                tokens=list(prompt),
                num_prompt_tokens=len(prompt),
                max_tokens=min(sampling.max_tokens or room, room),
                priority=priority,
                salt=salt,
                needs_prompt_logprobs=keeps_rows and index == 0,
            )
            group.append(
                Generation(
                    request, sampling, sample_seed(sampling, index), index, self.tokenizer, self.eos_ids,
                    partial(on_delta, index), prompt_rows=[] if keeps_rows and index == 0 else None,
                    matcher=None if matcher is None else matcher.copy(),
                )
            )  # fmt: skip
        first = group[0]
        first.siblings = group[1:]
        self.scheduler.add(first.request)
        self._is_stuck = False
        self._generations[first.request.request_id] = first
        self.counters.prompt_tokens += len(prompt)
        return group

    def add_all(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], on_delta: Callable[[int, Delta], None],
        *, keep_logits: bool = False,
    ) -> list[list[Generation]]:  # fmt: skip
        """Queue several prompts, or none of them if one cannot be served."""
        groups: list[list[Generation]] = []
        try:
            for prompt, sampling in zip(prompts, samplings, strict=True):
                groups.append(self.add(prompt, sampling, on_delta, keep_logits=keep_logits))
        except RequestError:
            for group in groups:
                self.cancel(group[0])
            raise
        return groups

    @contextmanager
    def step_budget(self, max_step_tokens: int | None) -> Iterator[None]:
        """Another token budget per step for a while, as tests of chunked prefill want."""
        usual = self.scheduler.config
        if max_step_tokens is not None:
            self.scheduler.config = replace(usual, max_step_tokens=max_step_tokens)
        try:
            yield
        finally:
            self.scheduler.config = usual

    def cancel(self, generation: Generation) -> None:
        """Drop a request, and the answers that wait for the end of its prompt; its blocks are free at once. Finished
        ones are left alone."""
        if generation.finish_reason is None:
            self.scheduler.cancel(generation.request.request_id)
            self._is_stuck = False
            self._end(generation, "cancelled")

    def cancel_all(self) -> None:
        for generation in list(self._generations.values()):
            self.cancel(generation)

    def has_work(self) -> bool:
        """Whether `step` can do something; not while requests that are held for a move keep all room."""
        return self.scheduler.has_work() and not self._is_stuck

    def new_id(self) -> str:
        return str(next(self._ids))

    def generation(self, request_id: str) -> Generation | None:
        """The live answer of that id."""
        return self._generations.get(request_id)

    def matcher(self, sampling: Sampling) -> Matcher | None:
        """At the start of the constraint. Compiles it here (1 to 100 ms) unless that was done before."""
        if sampling.constraint is None:
            return None
        if self.guide is None:
            raise RequestError("a constraint needs a tokenizer, and this model came without one; leave it out")
        return self.guide.find(sampling.constraint) or self.guide.compile(sampling.constraint)

    def _check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        if not prompt:
            raise RequestError("the prompt is empty; needed at least one token")
        bad = next((t for t in prompt if not 0 <= t < self.spec.vocab_size), None)
        if bad is not None:
            raise InvalidToken(f"token {bad} is outside the vocabulary of {self.spec.vocab_size} tokens")
        self.check_sampling(sampling)
        if len(prompt) >= self.max_context:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens; this engine holds {self.max_context} in all, so at most "
                f"{self.max_context - 1}. Shorten it, or start the engine with a larger max_context"
            )

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises RequestError for what this model and this engine cannot do."""
        for name, tokens in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            bad = next((t for t in tokens if t >= self.spec.vocab_size), None)
            if bad is not None:
                raise InvalidToken(f"{name} names token {bad}; the vocabulary has {self.spec.vocab_size}")
        if sampling.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this model came without one; use stop_token_ids")

    # ---------------------------------------------------------------------------------- moving

    @property
    def fingerprint(self) -> str:
        """Which model this is, for engines that hand requests to each other."""
        if self._fingerprint is None:
            self._fingerprint = self.config.model_id or network_fingerprint(self.runner.network)
        return self._fingerprint

    def export(self, request_id: str) -> Moved:
        """A live request with all its rows. It is held here until `release` or `resume`; see transfer.py."""
        return transfer.export(self, request_id)

    def admit(self, moved: Moved, on_delta: Callable[[int, Delta], None]) -> Generation:
        """Go on with a request that another engine has exported; all or nothing."""
        return transfer.admit(self, moved, on_delta)

    def release(self, request_id: str) -> None:
        """The exported request was admitted elsewhere: it is gone here, and told so."""
        generation = transfer.held(self, request_id)
        handover.let_go(self.scheduler, generation.request)
        self._end(generation, "moved")
        self._is_stuck = False

    def resume(self, request_id: str) -> None:
        """The exported request was not admitted elsewhere: it goes on here."""
        handover.resume(self.scheduler, transfer.held(self, request_id).request)
        self._is_stuck = False

    def enter(self, generation: Generation, drafts: MovedDrafts | None) -> None:
        """Take up an answer whose request the scheduler has adopted."""
        self._generations[generation.request.request_id] = generation
        self._is_stuck = False
        if self._drafter is not None and generation.request.num_committed_tokens:
            self._drafter.take_up(generation.request.request_id, drafts)

    def drafts_of(self, request_id: str) -> MovedDrafts | None:
        """How far the MTP layers' rows of a request are complete; None where nothing was ever drafted."""
        return None if self._drafter is None else self._drafter.state_of(request_id)

    def flush_orders(self) -> None:
        """Carry out what the scheduler has ordered for the next step: rows are then where it says they are."""
        self.runner.carry_out(self.scheduler.take_orders())

    # ---------------------------------------------------------------------------------- step

    def step(self) -> None:
        """One pass of the network, and all that goes with it."""
        began = time.perf_counter()
        batch = self.scheduler.schedule()
        self._is_stuck = not batch.entries
        if self._is_stuck:
            return
        result = self.runner.run(batch)
        accepted = [self._accept(entry, logits) for entry, logits in zip(batch.entries, result.logits, strict=True)]
        self.scheduler.commit(batch, accepted)
        self._fork(batch, result)
        self._draft(batch, result, accepted)
        self._measure(batch, accepted, time.perf_counter() - began)
        self._tell(batch)

    def _accept(self, entry: Entry, logits: Tensor) -> Accepted | None:
        """Draw the tokens that an entry's logits give: its drafts as far as they are right, and one more."""
        generation = self._generations[entry.request.request_id]
        if generation.prompt_rows is not None and entry.start < entry.request.num_prompt_tokens:
            if entry.start == 0:
                generation.prompt_rows.clear()  # a preempted prompt is computed again
            generation.prompt_rows.append(logits)
        if not entry.samples:
            return None
        rows = logits[len(logits) - 1 - entry.num_drafts :]
        drafts = entry.tokens[len(entry.tokens) - entry.num_drafts :]
        position = entry.start + len(entry.tokens) - entry.num_drafts
        tokens: list[int] = []
        for row_W, draft in itertools.zip_longest(rows, drafts):
            tokens.append(_draw(generation, row_W, position + len(tokens)))
            if generation.finish_reason is not None or tokens[-1] != draft:
                break
        self.counters.drafted_tokens += entry.num_drafts
        self.counters.accepted_drafts += len(tokens) - 1
        return Accepted(tuple(tokens), generation.finish_reason)

    def _fork(self, batch: Batch, result: StepResult) -> None:
        """Where a prompt with n > 1 is complete: its other answers draw from the same logits and go on alone."""
        for entry, logits in zip(batch.entries, result.logits, strict=True):
            parent = self._generations.get(entry.request.request_id)
            if parent is None or not parent.siblings or not entry.samples:
                continue
            siblings, parent.siblings = parent.siblings, []
            for child in siblings:
                child.request.tokens.append(_draw(child, logits[-1], entry.request.num_prompt_tokens))
                if child.finish_reason is None:
                    self._generations[child.request.request_id] = child
                    self.scheduler.fork(entry.request, child.request)
                self.counters.generated_tokens += 1
                child.tell()

    def _draft(self, batch: Batch, result: StepResult, accepted: Sequence[Accepted | None]) -> None:
        if self._drafter is None:
            return
        committed = []
        for entry, segment, tokens in zip(batch.entries, result.segments, accepted, strict=True):
            generation = self._generations[entry.request.request_id]
            rejected = entry.num_drafts - (len(tokens.tokens) - 1) if tokens is not None else 0
            alive = generation.finish_reason is None
            if alive or entry.start < entry.request.num_prompt_tokens:
                end = entry.start + len(entry.tokens) - rejected
                committed.append(Committed(entry, segment, end, generation, alive and tokens is not None))
        num_decoding = sum(c.wants_drafts for c in committed)
        self._drafter.propose(committed, result, self.draft_length.choose(num_decoding))

    def _measure(self, batch: Batch, accepted: Sequence[Accepted | None], seconds: float) -> None:
        new = sum(len(a.tokens) for a in accepted if a is not None)
        self.counters.steps += 1
        self.counters.generated_tokens += new
        drafts = {e.num_drafts for e in batch.entries}
        pure_decode = all(e.samples and len(e.tokens) == 1 + e.num_drafts for e in batch.entries)
        if pure_decode and len(drafts) == 1:
            self.draft_length.observe(len(batch.entries), drafts.pop(), new, seconds)

    def _tell(self, batch: Batch) -> None:
        for entry in batch.entries:
            generation = self._generations.get(entry.request.request_id)
            if generation is None:
                continue
            if generation.finish_reason is not None:
                self._forget(generation)
            generation.tell()

    def _end(self, generation: Generation, reason: FinishReason) -> None:
        """Without a further token; whoever listens hears of it, for those that wait for the prompt as well."""
        siblings, generation.siblings = generation.siblings, []
        generation.finish_reason = reason
        self._forget(generation)
        generation.tell()
        for sibling in siblings:
            if sibling.finish_reason is None:
                sibling.finish_reason = reason
                sibling.tell()

    def _forget(self, generation: Generation) -> None:
        self._generations.pop(generation.request.request_id, None)
        if generation.finish_reason != "moved":  # it is counted where it ends
            self.counters.prefix_hit_tokens += generation.request.num_cached_tokens
        if self._drafter is not None:
            self._drafter.forget(generation.request.request_id)


def check_generation_config(found: Mapping[str, Any], spec: ModelSpec) -> tuple[int, ...]:
    """The tokens that end an answer: of generation_config.json, else of config.json. ConfigError for a file whose
    defaults no request could use."""
    try:
        Sampling().with_defaults(found)
        eos_ids = token_ids(found, "eos_token_id") or spec.eos_token_ids
    except (ConfigError, InvalidSampling) as error:
        raise ConfigError(f"generation_config.json: {error}; take the one of the original release") from error
    bad = next((t for t in eos_ids if t >= spec.vocab_size), None)
    if bad is not None:
        raise ConfigError(f"eos_token_id is {bad}; the vocabulary has {spec.vocab_size} tokens")
    return eos_ids


def _draw(generation: Generation, row_W: Tensor, position: int) -> int:
    """Draw a token and add it to the answer. Where none can be drawn this answer fails, and no other."""
    try:
        token = generation.choose(row_W, position)
    except NoToken as error:
        generation.fail(str(error))
        return 0
    generation.add(token, row_W)
    return token
