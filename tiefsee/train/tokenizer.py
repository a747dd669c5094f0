"""A small byte-level BPE in the family's form: DeepSeek's special tokens, pre-tokenizer and files.

Layout of the ids, as in DeepSeek's tokenizers: 0 BOS, 1 EOS, 2 padding, then the 256 bytes and the merges,
and at the very end the other added tokens (chat, reasoning, tools, fill-in-the-middle, place holders).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"

# As spelled in the tokenizer.json of DeepSeek's releases, V4's encoding included.
NUM_PLACE_HOLDERS = 8
ADDED_TOKENS = (
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>",
    "<｜User｜>", "<｜Assistant｜>", "<|EOT|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
    "<think>", "</think>",
    "｜DSML｜", "<｜begin▁sys｜>", "<｜end▁sys｜>", "<｜latest_reminder｜>",
    "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>", "<｜title｜>",
    "<｜search▁begin｜>", "<｜search▁end｜>", "<｜extracted_url｜>", "<｜read_url｜>", "<｜end_of_query｜>",
    *(f"<｜place▁holder▁no▁{i}｜>" for i in range(NUM_PLACE_HOLDERS)),
)  # fmt: skip

# DeepSeek splits numbers into groups of up to three digits. Here every digit is a token of its own: a group
# of three makes 1,110 number tokens, a quarter of a vocabulary of 4,096, and hides the columns that a small
# model has to line up when it adds.
DIGIT = r"\p{N}"
CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
WORD = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_VOCAB_SIZE = 1 << 16  # token shards are uint16


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A BPE of exactly `vocab_size` tokens, added ones included; the same texts give the same file.

    Raises ConfigError if the size cannot hold the bytes and the added tokens, or if the texts are too few
    to fill it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    num_fixed = 3 + 256 + len(ADDED_TOKENS)
    if not num_fixed <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size is {vocab_size}; bytes and special tokens alone take {num_fixed} and token shards "
            f"hold at most {MAX_VOCAB_SIZE}; try 4096"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (DIGIT, CJK, WORD)]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in (BOS, EOS, PAD)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not "special", as in DeepSeek's files: decoding shows <think> and its like, and the parsers need them.
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ADDED_TOKENS])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(
            f"the texts give {tokenizer.get_vocab_size()} tokens and vocab_size asks for {vocab_size}; "
            "add text or choose a smaller vocabulary"
        )
    return tokenizer


def tokenizer_config(context: int) -> dict[str, Any]:
    """The tokenizer_config.json beside it. A base model's prompt begins with BOS, like its training text."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; `context` is the model's, in tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(context), ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def bytes_per_token(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Bytes of text behind each id; 0 for BOS, EOS and padding, which stand for no text."""
    from tokenizers import pre_tokenizers

    # Byte-level vocabularies spell each byte as one printable character: as many characters as bytes.
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256
    added = tokenizer.get_added_tokens_decoder()
    lengths = []
    for token_id in range(tokenizer.get_vocab_size()):
        text = tokenizer.id_to_token(token_id)
        assert text is not None, "ids are dense"
        if token_id in added:
            lengths.append(0 if added[token_id].special else len(text.encode()))
        else:
            lengths.append(len(text))
    return lengths
