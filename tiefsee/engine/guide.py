"""Constraints at work: compiled once per engine (`Guide`), then followed token by token (`Matcher`).

The parser is llguidance (docs/decisions/0005-constrained-output.md). A mask says which tokens may come next; the
end-of-text tokens are among them only where the text so far is complete. Masks are packed, one bit per token,
lowest bit first, until they reach the device.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiefsee.engine.constraint import Constraint
from tiefsee.errors import InvalidSampling, RequestError
from tiefsee.text import Tokenizer
from tiefsee.text.lark import with_short_numbers

if TYPE_CHECKING:
    import llguidance

Bits = NDArray[np.uint8]

# Between two tokens of JSON. Unbounded, a hot sampler (or a weak model) writes nothing but spaces for ever.
WHITESPACE = r" ?|\n {0,16}"
MAX_ENTRIES = 256
MAX_CACHED_CHARS = 8 * 1024 * 1024


class Matcher:
    """Where one answer stands in its constraint. One generation owns it; not for two threads at once.

    `error`, if not None, says why the constraint can be followed no further; all other methods are void then.
    """

    def __init__(self, backend: llguidance.LLMatcher, num_bytes: int) -> None:
        self._backend, self._num_bytes = backend, num_bytes
        self._known: dict[tuple[int, ...], Bits | None] = {}  # masks behind some drafts of the next tokens
        self.error: str | None = backend.get_error() or None

    def copy(self) -> Matcher:
        """Another answer at the same place."""
        other = Matcher(self._backend.deep_copy(), self._num_bytes)
        other._known = dict(self._known)
        return other

    @property
    def at_end(self) -> bool:
        """The text is complete and nothing can be added."""
        return self._backend.is_stopped() and self.error is None

    def allowed(self, drafts: Sequence[int] = ()) -> Bits | None:
        """The tokens that may come after `drafts`; not to be changed. None if the drafts themselves may not.

        What was computed for drafting is not computed again for verifying.
        """
        path = tuple(drafts)
        if path not in self._known:
            self._known[path] = self._compute(path)
        return self._known[path]

    def advance(self, token: int) -> None:
        """Take the token that was drawn; it must have been allowed."""
        if self.error is not None:
            return
        if not self._backend.consume_token(token):
            self.error = f"token {token} was allowed and then refused: {self._backend.get_error()}"
        elif self._backend.is_stopped() and not self._backend.is_accepting():
            self.error = f"no token of this vocabulary leads on ({self._backend.stop_reason()})"
        self._known = {path[1:]: bits for path, bits in self._known.items() if path and path[0] == token}

    def _compute(self, path: tuple[int, ...]) -> Bits | None:
        if self.error is not None or self._backend.is_stopped():
            return None
        taken = self._backend.try_consume_tokens(list(path))
        bits = None
        if taken == len(path) and not self._backend.is_stopped():  # nothing stands behind a draft that ends the text
            bits = np.zeros(self._num_bytes, dtype=np.uint8)
            self._backend.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._backend.is_error():
            self.error = self._backend.get_error()
            return None
        self._backend.rollback(taken)
        return bits


class Guide:
    """Compiles the constraints of one engine and keeps them. Any thread may compile; one does at a time.

    Compiling takes 1 to 100 ms, so not the thread that steps the engine; it leaves Python's lock alone.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, list(eos_ids)
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, Matcher] = OrderedDict()
        self._num_chars = 0
        self._compiling, self._lookup = threading.Lock(), threading.Lock()

    def find(self, constraint: Constraint) -> Matcher | None:
        """A matcher at the start of an answer, if the constraint was compiled before."""
        with self._lookup:
            matcher = self._compiled.get(constraint)
            if matcher is None:
                return None
            self._compiled.move_to_end(constraint)
            return matcher.copy()

    def compile(self, constraint: Constraint) -> Matcher:
        """A matcher at the start of an answer. Raises InvalidSampling if the constraint cannot be used."""
        with self._compiling:
            known = self.find(constraint)
            if known is not None:
                return known
            matcher = self._compile(constraint)
            with self._lookup:
                self._compiled[constraint] = matcher
                self._num_chars += len(constraint.source)
                while len(self._compiled) > MAX_ENTRIES or self._num_chars > MAX_CACHED_CHARS:
                    oldest, _ = self._compiled.popitem(last=False)
                    self._num_chars -= len(oldest.source)
                return matcher.copy()

    def _compile(self, constraint: Constraint) -> Matcher:
        import llguidance

        if self._vocabulary is None:
            view = _VocabularyView(self._tokenizer, self._vocab_size, self._eos_ids)
            self._vocabulary = llguidance.LLTokenizer(view, n_vocab=self._vocab_size, eos_token=self._eos_ids)  # type: ignore[arg-type]
        backend = llguidance.LLMatcher(
            self._vocabulary, lowered(constraint), log_level=0, limits=llguidance.LLParserLimits(verbose_errors=False)
        )
        matcher = Matcher(backend, 4 * -(-self._vocab_size // 32))
        first = matcher.allowed()  # every copy begins with it
        if matcher.error is not None:
            raise InvalidSampling(f"the {constraint.kind} cannot be used as a constraint: {matcher.error.strip()}")
        if first is None:
            raise InvalidSampling(f"the {constraint.kind} allows the empty text alone; leave the constraint out")
        return matcher


def lowered(constraint: Constraint) -> str:
    """llguidance's own form of a constraint."""
    import llguidance

    matcher = llguidance.LLMatcher
    if constraint.kind == "regex":
        return matcher.grammar_from_regex(constraint.source)
    if constraint.kind == "grammar":
        return matcher.grammar_from_lark(constraint.source)
    schema = with_short_numbers(json.loads(constraint.source or '{"type": "object"}'))
    return matcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": WHITESPACE})


def without(bits: Bits, tokens: Sequence[int]) -> Bits:
    """The same mask without some tokens; but the mask itself where nothing else is allowed."""
    rest = bits.copy()
    for token in tokens:
        rest[token >> 3] &= ~(1 << (token & 7)) & 0xFF
    return rest if rest.any() else bits


def unpacked(rows: Sequence[Bits], vocab_size: int, device: torch.device) -> Tensor:
    """Masks as a tensor of bools [n, W] on a device: W / 8 bytes a row travel there."""
    packed = torch.from_numpy(np.stack(rows)).to(device)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)
    return (packed[:, :, None] & powers).ne(0).flatten(1)[:, :vocab_size]


class _VocabularyView:
    """A tokenizer as llguidance asks for it: the bytes of each id, and which of them no text can spell.

    Ids in the padding of the vocabulary have no bytes, and no mask ever allows them.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        if not eos_ids:
            raise RequestError(
                "this model names no token that ends a text, so no answer under a constraint could end; "
                "set eos_token_id in generation_config.json"
            )
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = eos_ids[0], tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.control_ids, *eos_ids})

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        return self._tokenizer.encode(text, add_bos=False, parse_special=False)
