"""Token shards on disk, and the packed batches that training reads from them.

A shard is `NAME.bin`, uint16 token ids of whole documents one after another (BOS ... EOS), and `NAME.json`:
where the documents begin, the bytes of text behind each token id, and which ids end a paragraph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tiefsee.errors import ConfigError, ModelNotFound

BOS_ID, EOS_ID = 0, 1  # as in every tokenizer of the family
FORMAT = 1


class ShardWriter:
    """Writes one shard; a `with` block that fails leaves neither of its files."""

    def __init__(self, path: Path, token_bytes: Sequence[int], paragraph_ends: Sequence[int] = ()) -> None:
        if len(token_bytes) > 1 << 16:
            raise ConfigError(
                f"the vocabulary has {len(token_bytes)} tokens; shards are uint16 and hold 65,536; "
                "train a smaller tokenizer"
            )
        self._bin, self._json = path.with_suffix(".bin"), path.with_suffix(".json")
        self._token_bytes, self._paragraph_ends = list(token_bytes), list(paragraph_ends)
        self.offsets = [0]

    @property
    def num_tokens(self) -> int:
        """Tokens written so far, BOS and EOS of each document included."""
        return self.offsets[-1]

    def __enter__(self) -> Self:
        self._bin.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._bin.with_suffix(".part").open("wb")
        return self

    def add(self, tokens: Sequence[int]) -> None:
        """One document, without BOS and EOS."""
        ids = np.array([BOS_ID, *tokens, EOS_ID], dtype=np.uint16)
        self._file.write(ids.tobytes())
        self.offsets.append(self.offsets[-1] + len(ids))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        part = self._bin.with_suffix(".part")
        if error is not None:
            part.unlink()
            return
        part.replace(self._bin)
        index = {
            "format": FORMAT,
            "offsets": self.offsets,
            "token_bytes": self._token_bytes,
            "paragraph_ends": self._paragraph_ends,
        }
        self._json.write_text(json.dumps(index))


class Shard:
    """A memory-mapped shard: `tokens` is a uint16 array, `offsets[i] : offsets[i + 1]` document i."""

    def __init__(self, path: Path) -> None:
        index = _read_index(path)
        self.path = path
        self.offsets: NDArray[np.int64] = np.array(index["offsets"], dtype=np.int64)
        self.token_bytes: NDArray[np.int64] = np.array(index["token_bytes"], dtype=np.int64)
        self.paragraph_ends: NDArray[np.int64] = np.array(index["paragraph_ends"], dtype=np.int64)
        if self.num_tokens == 0:
            raise ConfigError(f"the shard {path} holds no documents; write some with `tiefsee train data`")
        size = path.with_suffix(".bin").stat().st_size
        if size != 2 * self.num_tokens:
            raise ConfigError(
                f"{path.with_suffix('.bin')} has {size} bytes and its index says {2 * self.num_tokens}; "
                "write it again with `tiefsee train data`"
            )
        self.tokens: NDArray[np.uint16] = np.memmap(path.with_suffix(".bin"), dtype=np.uint16, mode="r")

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def num_bytes(self, tokens: NDArray[Any]) -> int:
        """Bytes of text behind these tokens."""
        return int(self.token_bytes[np.asarray(tokens, dtype=np.int64)].sum())

    def window(self, document: int, start: int, num_tokens: int) -> NDArray[np.int64]:
        """Up to `num_tokens` tokens of a document from its token `start` on; always begins with BOS.

        A window from within a document takes BOS in front, as a prompt would have it.
        """
        first, end = int(self.offsets[document]), int(self.offsets[document + 1])
        if start == 0:
            return self.tokens[first : min(end, first + num_tokens)].astype(np.int64)
        inner = self.tokens[first + start : min(end, first + start + num_tokens - 1)].astype(np.int64)
        return np.concatenate([np.array([BOS_ID], dtype=np.int64), inner])

    def paragraph_start(self, document: int, start: int, reach: int) -> int:
        """The last beginning of a paragraph in the `reach` tokens before `start`; else `start`."""
        first = int(self.offsets[document])
        low = max(0, start - reach)
        if low == 0:
            return 0
        ends = np.isin(self.tokens[first + low : first + start], self.paragraph_ends).nonzero()[0]
        return low + int(ends[-1]) + 1 if len(ends) else start


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".bin").stat()
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"found no {error.filename}; a shard is a .bin and a .json of one name; "
            "make them with `tiefsee train data --text DIR --out DIR`"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path.with_suffix('.json')} is no JSON ({error}); write it again") from error
    if index.get("format") != FORMAT:
        raise ConfigError(
            f"{path.with_suffix('.json')} has format {index.get('format')}; this version reads {FORMAT}; "
            "write the shard again"
        )
    return index


def held_out_windows(
    shard: Shard, tokens_per_window: int, max_windows: int | None = None
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Windows that cover every document once, each with the bytes of its targets (all but its BOS).

    With `max_windows`, that many evenly over the shard: a quick estimate that is the same at every call.
    """
    places = [
        (document, start)
        for document in range(shard.num_documents)
        for start in _starts(int(shard.offsets[document + 1] - shard.offsets[document]), tokens_per_window)
    ]
    if max_windows is not None and max_windows < len(places):
        places = [places[i * len(places) // max_windows] for i in range(max_windows)]
    for document, start in places:
        window = shard.window(document, start, tokens_per_window)
        yield window, shard.num_bytes(window[1:])


def _starts(length: int, window: int) -> Iterable[int]:
    # The first window spends a token on the document's own BOS, later ones on the BOS put in front.
    return (0, *(start for start in range(window, length, window - 1)))
