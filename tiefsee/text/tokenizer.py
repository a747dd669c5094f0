"""Text to token ids and back: the byte-level BPE of the whole family, over the `tokenizers` library.

Every DeepSeek tokenizer.json is byte-level: a token is a run of bytes, and a character may be split over
several tokens. `token_bytes` says which bytes; `detokenise.py` builds the incremental way on it.

A BOS token is never added by the file's post-processor here, only by `encode`, so that it cannot come twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiefsee.errors import ConfigError, InvalidToken, ModelNotFound

if TYPE_CHECKING:
    import tokenizers


# What answers are built with: text to us, even where a tokenizer.json marks them as special.
ANSWER_TOKENS = (
    "<think>", "</think>", "｜DSML｜",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip


class Tokenizer:
    """One vocabulary with its special tokens. Made by `from_folder` or `from_files`.

    `control_ids` are all tokens that stand beside the BPE vocabulary; no ordinary text encodes to one with
    `parse_special=False`. `special_ids` are those of them that text leaves out: BOS, EOS, padding.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_ids: Sequence[int] = (),
        add_bos: bool = False,
    ) -> None:
        decoder = type(backend.decoder).__name__
        if decoder != "ByteLevel":
            raise ConfigError(
                f"the tokenizer's decoder is {decoder}; tiefsee reads byte-level BPE, which every model of "
                "the DeepSeek family uses; take tokenizer.json from the original release"
            )
        self._backend = backend
        self._added = backend.get_added_tokens_decoder()
        self.bos_token = bos_token
        self.bos_id = None if bos_token is None else backend.token_to_id(bos_token)
        self.eos_ids = tuple(eos_ids)
        self.add_bos = add_bos
        self.control_ids = frozenset(self._added)
        self.special_ids = frozenset(
            i for i, token in self._added.items() if token.special and token.content not in ANSWER_TOKENS
        )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a checkpoint's folder; raises ModelNotFound if it has none."""
        return cls.from_files(
            folder / "tokenizer.json",
            folder / "tokenizer_config.json",
            config=config,
            generation_config=generation_config,
        )

    @classmethod
    def from_files(
        cls,
        tokenizer_json: Path,
        tokenizer_config: Path | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """Read tokenizer.json and, if it exists, tokenizer_config.json.

        The ids that end an answer come from generation_config.json, else config.json, else the
        tokenizer's own `eos_token`.
        """
        import tokenizers

        if not tokenizer_json.is_file():
            raise ModelNotFound(
                f"found no {tokenizer_json}; text needs a tokenizer.json; copy it from the original release, "
                "or pass token ids"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the library raises a bare Exception for any fault of the file
            raise ConfigError(
                f"cannot read {tokenizer_json}: {error}; it must be the JSON of a `tokenizers` tokenizer; "
                "download it again"
            ) from error
        settings = read_json(tokenizer_config) if tokenizer_config and tokenizer_config.is_file() else {}
        eos_ids = _eos_ids(backend, settings, config or {}, generation_config or {})
        return cls(
            backend,
            bos_token=token_text(settings.get("bos_token")),
            eos_ids=eos_ids,
            add_bos=bool(settings.get("add_bos_token", False)),
        )

    @property
    def vocab_size(self) -> int:
        """Tokens with a text; the model's own vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_bos` puts the BOS token first unless the text starts with it already; None does what the
        checkpoint's tokenizer_config.json says. With `parse_special` False, "<｜User｜>" in the text is
        ordinary text and not the token.
        """
        backend = self._backend if parse_special else self._plain
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        if not (self.add_bos if add_bos is None else add_bos):
            return ids
        if self.bos_id is None:
            raise ConfigError(
                "add_bos was asked for, but this tokenizer names no BOS token; "
                "set bos_token in tokenizer_config.json or leave add_bos out"
            )
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def encode_ranges(self, text: str, special_ranges: Iterable[tuple[int, int]]) -> list[int]:
        """Token ids of a rendered conversation in which only the given ranges are special tokens.

        Ranges are ascending (start, end) of `text`. What a user typed can then never become a control
        token. A range whose text is no token of this vocabulary is ordinary text like its neighbours.
        """
        ids: list[int] = []
        plain_from = 0
        for start, end in special_ranges:
            token = self._backend.token_to_id(text[start:end])
            if token is None or token not in self._added:
                continue
            ids += self.encode(text[plain_from:start], add_bos=False, parse_special=False)
            ids.append(token)
            plain_from = end
        return ids + self.encode(text[plain_from:], add_bos=False, parse_special=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Ids without a token have no text."""
        self.check(ids)
        kept = [i for i in ids if i not in self.special_ids] if skip_special else list(ids)
        return self._backend.decode(kept, skip_special_tokens=False)

    def check(self, ids: Iterable[int]) -> None:
        """Raises InvalidToken for a negative id; the upper bound is the model's, not the tokenizer's."""
        for token in ids:
            if token < 0:
                raise InvalidToken(f"found token id {token}; ids count from 0; encode the text again")

    def token_id(self, token: str) -> int | None:
        """The id of one token by its exact spelling, or None: token_id("<think>")."""
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for an id in the padding of the vocabulary.

        This is what a log-probability display needs: half a character has bytes, but no text.
        """
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(self._byte_of[char] for char in token)
        except KeyError:  # an added token such as <｜User｜> is spelled in plain UTF-8
            return token.encode()

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same vocabulary without the added tokens, so that nothing in a text is special."""
        import tokenizers

        plain = tokenizers.Tokenizer(self._backend.model)
        if self._backend.normalizer is not None:
            plain.normalizer = self._backend.normalizer
        if self._backend.pre_tokenizer is not None:
            plain.pre_tokenizer = self._backend.pre_tokenizer
        return plain

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """Byte-level BPE spells each byte as one printable character; this is the way back.

        Printable Latin-1 stands for itself; the other 68 bytes are, in order, U+0100 and on.
        (GPT-2, `bytes_to_unicode`.)
        """
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in set(printable)]
        return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; raises ConfigError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; it must be a JSON object; download it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}; it must be a JSON object; download it again")
    return value


def token_text(entry: Any) -> str | None:
    """tokenizer_config.json spells a token as text or as an AddedToken object."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _eos_ids(
    backend: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
) -> tuple[int, ...]:
    for source in (generation_config, config):
        value = source.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and i >= 0 for i in ids):
                raise ConfigError(f"eos_token_id is {value!r}; it must be a token id or a list of them")
            return tuple(ids)
    token = token_text(settings.get("eos_token"))
    found = None if token is None else backend.token_to_id(token)
    return () if found is None else (found,)
