"""From folders of text to a tokenizer and token shards; the whole of `tiefsee train data`.

What may be used is decided here: novels published before 1925 (the year is in the file name) and the
FairytaleQA tales, whose test split stays untouched. GSM8K is not read at all: its test file is for
evaluation, and a model of a few million parameters learns nothing from its train file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiefsee.errors import ModelNotFound
from tiefsee.train import tasks
from tiefsee.train.shards import ShardWriter
from tiefsee.train.tokenizer import bytes_per_token, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import tokenizers

FIRST_YEAR_LEFT_OUT = 1925  # what was published earlier is in the public domain in the United States
NUM_HELD_OUT_NOVELS = 3
NUM_TASK_DOCUMENTS = 100_000
NUM_HELD_OUT_TASK_DOCUMENTS = 500
# 6,144 would put a million more of five million parameters into embedding and head.
DEFAULT_VOCAB_SIZE = 4096
# Tales and tasks are a few per cent of the text; repeating them earns their words and signs a merge.
TALE_REPEATS = 4
NOVEL_STRIDE_CHARS = 1 << 16  # every second piece of this size goes into the merges: about 35 of 70 MB
WRAP_SLACK_CHARS = 8
MAX_WRAP_CHARS = 130
MIN_BLANK_SHARE = 0.1


@dataclass(frozen=True)
class Document:
    """One whole text: a novel or a tale."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents by part; `left_out` says which files were not used, and why."""

    novels: tuple[Document, ...]
    held_out_novels: tuple[Document, ...]
    tales: tuple[Document, ...]
    held_out_tales: tuple[Document, ...]
    left_out: dict[str, str]


def prepare(text_dir: Path, out_dir: Path, vocab_size: int = DEFAULT_VOCAB_SIZE, seed: int = 0) -> dict[str, Any]:
    """Write tokenizer and shards below `out_dir`; returns the manifest that is also in manifest.json.

    Shards: novels, tales, tasks to train on; held_out_novels, held_out_tales, held_out_tasks to measure.
    The same text, size and seed give the same bytes.
    """
    corpus = read_corpus(text_dir, seed)
    problems = list(tasks.documents(NUM_TASK_DOCUMENTS, seed, held_out=False))
    tokenizer = train_tokenizer(_tokenizer_texts(corpus, problems), vocab_size)
    save_tokenizer(tokenizer, out_dir, context=4096)
    parts = {
        "novels": corpus.novels,
        "tales": corpus.tales,
        "tasks": _numbered(problems),
        "held_out_novels": corpus.held_out_novels,
        "held_out_tales": corpus.held_out_tales,
        "held_out_tasks": _numbered(list(tasks.documents(NUM_HELD_OUT_TASK_DOCUMENTS, seed, held_out=True))),
    }
    written = {name: _write(out_dir / "shards", name, tokenizer, docs) for name, docs in parts.items()}
    manifest = {
        "vocab_size": vocab_size,
        "seed": seed,
        "parts": written,
        "held_out": [d.name for d in (*corpus.held_out_novels, *corpus.held_out_tales)],
        "left_out": corpus.left_out,
    }
    (out_dir / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_corpus(text_dir: Path, seed: int) -> Corpus:
    """Novels and tales below `text_dir`; raises ModelNotFound when there is no text."""
    novels, left_out = _read_novels(text_dir / "english_novels")
    tales_dir = text_dir / "fairytaleqa" / "data-by-train-split" / "section-stories"
    tales, held_out_tales = (_read_tales(tales_dir / part) for part in ("train", "val"))
    if not novels or not tales:
        raise ModelNotFound(
            f"found {len(novels)} novels and {len(tales)} tales below {text_dir}; needed are "
            "english_novels/Author_Title_YEAR.txt and fairytaleqa/data-by-train-split/section-stories/"
            "{train,val}/*.csv (computationalstylistics/100_english_novels, uci-soe/FairytaleQAData)"
        )
    held_out = _choose_held_out(novels, seed)
    return Corpus(
        tuple(d for d in novels if d not in held_out), held_out, tales, held_out_tales, left_out
    )  # fmt: skip


def _read_novels(folder: Path) -> tuple[tuple[Document, ...], dict[str, str]]:
    documents, left_out = [], {}
    for path in sorted(folder.glob("*.txt")):
        year = re.search(r"_(\d{4})$", path.stem)
        if year is None:
            left_out[path.name] = "no year of publication in the file name"
        elif int(year[1]) >= FIRST_YEAR_LEFT_OUT:
            left_out[path.name] = f"published in {year[1]}"
        else:
            documents.append(Document(path.stem, clean(path.read_text(encoding="utf-8-sig"))))
    return tuple(documents), left_out


def _read_tales(folder: Path) -> tuple[Document, ...]:
    documents = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            sections = [clean(row["text"]) for row in csv.DictReader(file)]
        documents.append(Document(path.stem.removesuffix("-story"), "\n\n".join(sections)))
    return tuple(documents)


def _choose_held_out(novels: tuple[Document, ...], seed: int) -> tuple[Document, ...]:
    """Whole novels of different authors, the first in an order that the seed fixes."""
    chosen: dict[str, Document] = {}
    for novel in sorted(novels, key=lambda d: hashlib.sha256(f"{seed} {d.name}".encode()).digest()):
        chosen.setdefault(novel.name.split("_")[0], novel)
    return tuple(list(chosen.values())[:NUM_HELD_OUT_NOVELS])


def clean(text: str) -> str:
    """One paragraph a line, blank lines between; single spaces, no line wrapping, no byte order mark.

    Bits per byte are measured on this form, so the figures know nothing of where a typist broke a line.
    """
    lines = text.replace("\ufeff", "").replace("\f", " ").splitlines()
    continues = _wrap_rule([line.strip() for line in lines])
    paragraphs: list[str] = []
    previous: str | None = None
    for line in lines:
        if previous is not None and line.strip() and continues(previous, line):
            paragraphs[-1] += " " + line
        else:
            paragraphs.append(line)
        previous = line if line.strip() else None
    return "\n\n".join(joined for joined in (" ".join(p.split()) for p in paragraphs) if joined)


def _wrap_rule(lines: list[str]) -> Callable[[str, str], bool]:
    """Does the second line go on with the paragraph of the first? Three kinds of file are met.

    Each paragraph one line: never. Wrapped, blank lines between paragraphs: yes, unless the first is so
    short that it is verse or a heading. Wrapped without blank lines: if its first word had no room on the
    first line, and if it is not indented.
    """
    lengths = sorted(len(line) for line in lines if line)
    width = lengths[int(0.95 * (len(lengths) - 1))] if lengths else 0
    if width == 0 or width > MAX_WRAP_CHARS:
        return lambda line, following: False
    if 1 - len(lengths) / len(lines) > MIN_BLANK_SHARE:
        return lambda line, following: len(line.strip()) > width // 2

    def had_no_room(line: str, following: str) -> bool:
        indented = following[0].isspace() and not line[0].isspace()
        full = len(line.strip()) + 1 + len(following.split()[0]) > width - WRAP_SLACK_CHARS
        return full and not indented

    return had_no_room


def _tokenizer_texts(corpus: Corpus, problems: list[str]) -> Iterator[str]:
    for novel in corpus.novels:
        for start in range(0, len(novel.text), 2 * NOVEL_STRIDE_CHARS):
            yield novel.text[start : start + NOVEL_STRIDE_CHARS]
    for _ in range(TALE_REPEATS):
        yield from (tale.text for tale in corpus.tales)
    yield from problems[: len(problems) // 10]


def _numbered(texts: list[str]) -> tuple[Document, ...]:
    return tuple(Document(str(index), text) for index, text in enumerate(texts))


def _write(folder: Path, name: str, tokenizer: tokenizers.Tokenizer, documents: Sequence[Document]) -> dict[str, float]:
    """One shard of whole documents; returns its size for the manifest."""
    lengths = bytes_per_token(tokenizer)
    breaks = [i for i in range(len(lengths)) if tokenizer.decode([i]).endswith("\n\n")]
    with ShardWriter(folder / name, lengths, paragraph_ends=breaks) as writer:
        for document in documents:
            writer.add(tokenizer.encode(document.text, add_special_tokens=False).ids)
    num_bytes = sum(len(d.text.encode()) for d in documents)
    return {
        "documents": len(documents),
        "tokens": writer.num_tokens,
        "bytes": num_bytes,
        "bytes_per_token": round(num_bytes / max(1, writer.num_tokens), 4),
    }
