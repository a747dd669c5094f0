"""What a config.json means: published sizes, old and new spellings, and what is refused."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest

from tests.tiny import CONFIGS, FAMILIES, tiny_network
from tiefsee.errors import ConfigError, ModelNotFound
from tiefsee.spec import cache_streams, checkpoint_tensors, model_spec, preset, preset_names
from tiefsee.spec.presets import preset_config
from tiefsee.spec.size import count_parameters, weight_bytes
from tiefsee.streams import Stream, block_tokens


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("v2", 236e9, 21e9),  # arXiv 2405.04434, abstract
        ("v2-lite", 15.7e9, 2.4e9),  # the same, appendix B
        ("v3", 671e9, 37e9),  # arXiv 2412.19437, abstract; MTP not counted
        ("v4-flash", 284e9, 13e9),  # the release's model card
        ("v4-pro", 1.6e12, 49e9),
    ],
)
def test_published_parameter_counts(name, total, active):
    count = count_parameters(preset(name))
    assert count.total - count.mtp == pytest.approx(total, rel=0.02)
    assert count.active == pytest.approx(active, rel=0.03)


def test_published_cache_sizes():
    def per_token(name):
        return sum(s.bytes_per_token("bfloat16") for s in cache_streams(preset(name), speculate=False))

    assert per_token("v3") == 70_272  # 61 * (512 + 64) * 2
    assert per_token("v4-pro") < 0.12 * per_token("v3.2")  # "10 % of its cache at 1M", rings aside
    flash = cache_streams(preset("v4-flash"), speculate=False)
    assert block_tokens(flash) == 256
    assert sum(s.snapshot_bytes("bfloat16") for s in flash) == pytest.approx(6.6e6, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_the_network_is_in_the_table(family):
    network = tiny_network(family)
    held = {n: tuple(t.shape) for n, t in (*network.named_parameters(), *network.named_buffers())}
    table: dict[str, tuple[int, ...]] = {}
    for tensor in checkpoint_tensors(network.spec):
        experts = () if tensor.expert is None else (6,)
        table[tensor.name] = (*experts, *tensor.shape)
    assert table == held


def test_published_names_are_unique():
    for family in FAMILIES:
        tensors = checkpoint_tensors(model_spec(CONFIGS[family]))
        names = [name for t in tensors for name in (t.published, *t.aliases)]
        assert len(names) == len(set(names))


def test_rope_spellings():
    old = {k: v for k, v in CONFIGS["v3"].items() if k != "rope_parameters"}
    parameters = dict(CONFIGS["v3"]["rope_parameters"])
    old["rope_theta"] = parameters.pop("rope_theta")
    parameters["type"] = parameters.pop("rope_type")
    assert model_spec({**old, "rope_scaling": parameters}) == model_spec(CONFIGS["v3"])


def test_v4_spellings():
    published = CONFIGS["v4"]
    names = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    modern = {k: v for k, v in published.items() if k not in ("compress_ratios", "num_hash_layers", "qk_rope_head_dim")}
    modern["layer_types"] = [names[r] for r in published["compress_ratios"][:5]]
    modern["compress_rates"] = {names[4]: 4, names[128]: 128}
    modern["mlp_layer_types"] = ["hash_moe", "moe", "moe", "moe", "moe"]
    modern["partial_rotary_factor"] = 8 / 28
    rope = dict(modern.pop("rope_scaling"))
    modern["rope_parameters"] = {
        "main": {"rope_type": "default", "rope_theta": 10000.0},
        "compress": {**rope, "rope_theta": 160000.0, "attention_factor": 1.0},
    }
    assert model_spec(modern) == model_spec(published)


def test_the_kind_of_a_layer_is_its_type_not_its_ratio():
    config = {
        **{k: v for k, v in CONFIGS["v4"].items() if k != "compress_ratios"},
        "layer_types": ["heavily_compressed_attention"] * 5,
        "compress_rates": {"heavily_compressed_attention": 4},
    }
    spec = model_spec(config)
    assert {layer.attention.kind for layer in spec.layers} == {"window_compressed"}
    assert spec.layers[0].attention.ratio == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": None}, "no 'vocab_size'"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": "big"}, "whole number"),
        ({"num_experts_per_tok": 5}, "only 4 of 6 experts are reachable"),
        ({"n_group": 4}, "does not divide"),
        ({"topk_method": "greedy"}, "noaux_tc"),
        ({"scoring_func": "softmax"}, "sigmoid"),
        ({"qk_rope_head_dim": 7}, "must be even"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"mlp_layer_types": ["dense"]}, "has 1 entries"),
    ],
)
def test_configs_that_make_no_sense(change, words):
    with pytest.raises(ConfigError, match=words):
        model_spec({**CONFIGS["v3"], **change})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_field_of_the_wrong_kind_is_an_error_of_ours(family):
    """Whatever stands in any field of the config or of its objects: a spec, or a ConfigError."""
    config = {**CONFIGS[family], "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    objects = {key: value for key, value in config.items() if isinstance(value, dict)}
    extra = {"layer_types": None, "mlp_layer_types": None, "compress_rates": {}, "architectures": ["x"]}
    for wrong in ("x", "4", -1, 0, 1.5, True, math.inf, [], [[]], ["a"], {}, {"a": 1}, None):
        changes = [{key: wrong} for key in config | extra]
        changes += [{key: {**value, inner: wrong}} for key, value in objects.items() for inner in value]
        for change in changes:
            with suppress(ConfigError):
                spec = model_spec(config | change)
                cache_streams(spec, speculate=True)
                count_parameters(spec)


def test_v4_configs_that_make_no_sense():
    for change, words in (
        ({"compress_ratios": [0, 1, 2, 4, 128]}, r"holds 1, 2; .*V4.1"),
        ({"compress_ratios": [0, 4]}, "has 2 entries"),
        ({"compress_ratios": [0, 4, 128, 4, 128, 4]}, "MTP"),
        ({"o_groups": 5}, "do not divide"),
        ({"scoring_func": "tanh"}, "'tanh'"),
        ({"compress_rates": {"heavily_compressed_attention": 4}}, "ratio 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            model_spec({**CONFIGS["v4"], **change})


def test_presets():
    for name in preset_names():
        assert preset(f"deepseek-ai/DeepSeek-{name}") == preset(name)
        assert weight_bytes(preset(name), "keep", "bfloat16") > 1e9
    assert preset_config("v3")["model_type"] == "deepseek_v3"
    with pytest.raises(ModelNotFound, match="v4-pro"):
        preset("v5")


def test_blocks_hold_whole_entries_of_every_ratio():
    def history(ratio):
        return Stream(f"r{ratio}", (0,), "history", (4,), ratio)

    assert block_tokens([history(1)]) == 256
    assert block_tokens([history(4), history(128)]) == 256
    assert block_tokens([history(3), history(100)]) == 300
    with pytest.raises(ConfigError, match="4096"):
        block_tokens([history(127), history(128)])
