"""The spellings and packings of DeepSeek's releases give the logits of transformers on the same files.

transformers reads published names too, so it says whether these test files are spelled right. FP8 and FP4
it is not given: it gets, in a second folder, the values that the packed weights stand for.
"""

from __future__ import annotations

import pytest
import torch

from tests.family import VARIANTS, load_reference, make_checkpoint, random_tokens
from tests.parity.compare import assert_close, errors, reference
from tests.published import publish, publish_packed
from tiefsee import LLM

# Compression ratios other than 4 and 128 have no published spelling.
PUBLISHED = [v for v in VARIANTS if v != "v4-ratios"]
LENGTH = 300
# Of the wider checkpoints for packing: at these no router and no indexer decides by less than 1e-4 or so.
PACKED_SEEDS = {"v3-groups": 2, "v3.2-yarn": 0, "v4-published": 2}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_names_and_config(variant, tmp_path, device):
    saved = make_checkpoint(tmp_path / "saved", variant)
    published = publish(saved, tmp_path / "published")
    tokens = random_tokens(LENGTH, VARIANTS[variant].seed)
    needed = reference(load_reference(saved), tokens)
    same = reference(load_reference(published), tokens)
    assert errors(same.logits, needed.logits).max() < 1e-6, "the published spelling of these tests is not transformers'"
    llm = LLM(published, device=device, dtype="float32", max_context=1024)
    assert_close(llm.logits([tokens])[0], needed.logits, "published")
    assert bool(llm.core.config.max_draft) == bool(llm.core.spec.mtp_layers), "the MTP layer was not found"


@pytest.mark.parametrize("variant", PACKED_SEEDS)
def test_packed_weights(variant, tmp_path, device):
    # 160 = 128 + 32: full blocks, and partial ones at the edges.
    seed = PACKED_SEEDS[variant]
    saved = make_checkpoint(tmp_path / "saved", variant, seed, hidden_size=160, moe_intermediate_size=96)
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    publish_packed(saved, packed, plain)
    tokens = random_tokens(LENGTH, seed)
    needed = reference(load_reference(plain), tokens)
    assert needed.near_ties() == 0
    for format in ("keep", "fp32"):
        llm = LLM(packed, device=device, dtype="float32", format=format, max_context=1024)
        assert_close(llm.logits([tokens])[0], needed.logits, f"format {format}")
    assert errors(reference(load_reference(saved), tokens).logits, needed.logits).max() > 0.01, "packing rounds"


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_conversion_at_load_stays_near(format, tmp_path, device):
    saved = make_checkpoint(tmp_path / "saved", "v2-greedy")
    tokens = random_tokens(LENGTH, VARIANTS["v2-greedy"].seed)
    needed = reference(load_reference(saved), tokens).logits
    found = LLM(saved, device=device, dtype="float32", format=format, max_context=1024).logits([tokens])[0]
    # Rounding flips routers here and there; in the median a position stays close, and some weight was rounded.
    assert 1e-4 < errors(found, needed).median() < 0.1
    assert torch.isfinite(found).all()
