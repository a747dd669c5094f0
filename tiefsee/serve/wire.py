"""What the front and the engine process say to each other: msgpack over a Unix socket pair.

    front  -> worker    Start, once; then Add, Cancel, Ask; Stop
    worker -> front     Ready or Fatal, once; then one Turn per step for all requests together; Log; Fatal

A frame is its length (4 bytes, little endian) and one message. Messages are arrays, without names of
fields: a Turn that gives 32 requests a token each is about 600 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from tiefsee.engine.delta import FinishReason, TokenLogprobs
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import RequestError, WireError

# A prompt of a million tokens is 5 MB. What is longer is not a message of ours.
MAX_FRAME_BYTES = 64 << 20
_PREFIX = 4


class Message(msgspec.Struct, array_like=True, tag=True, gc=False):
    """Base of what is framed; the class's name is the first element."""


class EngineOptions(msgspec.Struct, frozen=True):
    """What the worker builds its core from: the arguments of `LLM`, `config` being those of `EngineConfig`.

    `core` is for tests and benchmarks: "package.module:function", called with these options instead.
    """

    model: str = "tiefsee-demo"
    device: str = "cpu"
    dtype: str = "auto"
    format: str = "auto"
    config: dict[str, Any] = {}
    core: str = ""
    tp: int = 1


# ------------------------------------------------------------------------------------ commands


class Start(Message):
    options: EngineOptions


class Task(msgspec.Struct, array_like=True, gc=False):
    """What one request wants of `EngineCore.add`."""

    prompt: list[int]
    sampling: Sampling
    priority: int = 0
    salt: str | None = None


class Add(Message):
    """`task` is an encoded Task of its own: one that does not decode is one refused request, not a broken wire."""

    request: int
    task: msgspec.Raw


class Cancel(Message):
    request: int


class Ask(Message):
    """For statistics, as soon as the step in flight is over; the Turn that has them says `answers`."""

    number: int


class Stop(Message):
    """Cancel everything and exit."""


Command = Start | Add | Cancel | Ask | Stop

# -------------------------------------------------------------------------------------- events


class Piece(msgspec.Struct, array_like=True, gc=False):
    """What was added to one of the n answers (`index`) of one request."""

    request: int
    index: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    special_ranges: list[tuple[int, int]] | None = None
    stop: str | None = None
    error: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Started(msgspec.Struct, array_like=True, gc=False):
    """A request was scheduled for the first time, at `time_s` of the clock that all processes share
    (time.monotonic), with so many of its prompt's tokens found in the prefix cache."""

    request: int
    num_cached_tokens: int
    time_s: float


class Refusal(msgspec.Struct, array_like=True, gc=False):
    """A request that cannot be served: the class of the RequestError, and its sentence."""

    request: int
    kind: str
    text: str


class EngineStats(msgspec.Struct, frozen=True):
    """Gauges of this moment and counters since this process began.

    `num_free_blocks` counts blocks that can be had, those that only the prefix cache keeps among them
    (`num_cached_blocks` are findable, held or not); `num_used_blocks` are held by requests.
    `num_paused_steps` counts the times that stepping waited for the front to take what there was.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_used_blocks: int = 0
    num_cached_blocks: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_drafts: int = 0
    num_paused_steps: int = 0


class EngineInfo(msgspec.Struct, frozen=True):
    """What the front has to know of model and limits; it reads the tokenizer and chat format in `folder` itself."""

    model: str
    folder: str
    device: str
    max_context: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    max_running: int
    max_step_tokens: int
    max_draft: int
    block_tokens: int
    num_blocks: int
    cache_bytes: float
    generation_config: dict[str, Any]
    notes: tuple[str, ...]
    pid: int
    load_s: float


class Ready(Message):
    info: EngineInfo


class Turn(Message):
    """Everything that happened since the last one: usually one step."""

    accepted: list[int] = []
    refused: list[Refusal] = []
    started: list[Started] = []
    pieces: list[Piece] = []
    stats: EngineStats | None = None
    answers: int = 0  # the last Ask that `stats` came after


class Log(Message):
    level: int
    text: str


class Fatal(Message):
    """The worker's last words: the class of the error and its sentence; the traceback goes to stderr."""

    kind: str
    text: str


Event = Ready | Turn | Log | Fatal

# -------------------------------------------------------------------------------------- frames

M = TypeVar("M")
_encoder = msgspec.msgpack.Encoder()  # without state
_task_decoder = msgspec.msgpack.Decoder(Task)


def add_request(number: int, task: Task) -> Add:
    """Raises RequestError for what msgpack cannot say: integers beyond 64 bits, halves of a surrogate pair."""
    try:
        return Add(number, msgspec.Raw(_encoder.encode(task)))
    except (OverflowError, TypeError, ValueError) as error:
        raise RequestError(f"the request cannot be sent to the engine: {error}") from error


def task_of(add: Add) -> Task:
    """Raises RequestError if it is none."""
    try:
        return _task_decoder.decode(add.task)
    except msgspec.DecodeError as error:
        raise RequestError(f"the request has a value of the wrong type: {error}") from error


def frame(message: Message) -> bytearray:
    """The message with its length before it."""
    buffer = bytearray(_PREFIX)
    _encoder.encode_into(message, buffer, _PREFIX)
    length = len(buffer) - _PREFIX
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a {type(message).__name__} of {length} bytes; a frame holds at most {MAX_FRAME_BYTES}")
    buffer[:_PREFIX] = length.to_bytes(_PREFIX, "little")
    return buffer


class Frames(Generic[M]):
    """Bytes as they come, messages as they are complete."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Raises WireError at a frame that is too long or does not decode; nothing after it is read."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _PREFIX:
                length = int.from_bytes(buffer[start : start + _PREFIX], "little")
                if length > MAX_FRAME_BYTES:
                    raise WireError(f"a frame claims {length} bytes; at most {MAX_FRAME_BYTES} were expected")
                end = start + _PREFIX + length
                if len(buffer) < end:
                    return
                whole, start = bytes(memoryview(buffer)[start + _PREFIX : end]), end
                yield self._decode(whole)
        finally:
            del buffer[:start]

    def _decode(self, whole: bytes) -> M:
        try:
            return self._decoder.decode(whole)
        except msgspec.DecodeError as error:  # ValidationError is one
            raise WireError(f"a frame of {len(whole)} bytes that is none of our messages: {error}") from error


def commands() -> Frames[Command]:
    """What a worker reads."""
    return Frames(msgspec.msgpack.Decoder(Command))


def events() -> Frames[Event]:
    """What a front reads."""
    return Frames(msgspec.msgpack.Decoder(Event))
