"""Checkpoints as DeepSeek publishes them load, stay packed, and give the logits of their values."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.packers import write_checkpoint
from tests.tiny import CONFIGS, prompt, relative_error, tiny_spec
from tiefsee import LLM
from tiefsee.checkpoint import save_network
from tiefsee.errors import CheckpointError, ConfigError, ModelNotFound, UnsupportedModel
from tiefsee.model import Network
from tiefsee.ops import Operators
from tiefsee.ops.group import Group
from tiefsee.ops.weight import Weight

# hidden_size 144 and 160 make partial blocks of 128 at the edges; FP4 needs an even number of columns.
V3 = {**CONFIGS["v3"], "hidden_size": 144, "intermediate_size": 136}
V4 = {**CONFIGS["v4"], "hidden_size": 160, "moe_intermediate_size": 40}


def open_llm(path, **options):
    return LLM(path, dtype="float32", max_context=1024, max_draft=0, **options)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (V3, {"block": 128}),
        (V3, {"block": 128, "ue8m0": True}),
        (V3, {"block": 32, "ue8m0": True}),
        (V4, {"block": 128}),
        (V4, {"block": 128, "ue8m0": True, "experts": "fp4"}),
        (V4, {"block": 32, "ue8m0": True, "experts": "fp4"}),
    ],
    ids=["v3-128", "v3-128-ue8m0", "v3-32-ue8m0", "v4-base", "v4-fp4", "v4-32-fp4"],
)
def test_packed_equals_its_values(tmp_path, config, options):
    packed, plain = write_checkpoint(tmp_path, config, **options)
    needed = open_llm(plain).logits([prompt(150)])[0]
    llm = open_llm(packed)
    experts = llm.core.runner.network.layers[-1].ffn.experts.w1
    assert isinstance(experts, Weight)
    assert experts.packing.format == options.get("experts", "fp8")
    assert relative_error(llm.logits([prompt(150)])[0], needed) < 1e-5
    assert relative_error(open_llm(packed, format="fp32").logits([prompt(150)])[0], needed) < 1e-5


def test_converted_at_load(tmp_path):
    packed, plain = write_checkpoint(tmp_path, V3)
    needed = open_llm(plain).logits([prompt(20)])[0]
    network = open_llm(packed, format="int8").core.runner.network
    assert network.layers[0].attn.wo.weight.packing.format == "int8"
    assert network.layers[1].ffn.experts.w2.packing.format == "int8"
    assert network.layers[1].ffn.gate.weight.dtype == torch.float32
    found = open_llm(packed, format="int8").logits([prompt(20)])[0]
    assert 1e-5 < relative_error(found[:1], needed[:1]) < 0.2


def test_saving_again_changes_no_byte(tmp_path):
    for name, config, options in (("v3", V3, {}), ("v4", V4, {"ue8m0": True, "experts": "fp4"})):
        packed, _ = write_checkpoint(tmp_path / name, config, **options)
        llm = open_llm(packed)
        again = tmp_path / name / "again"
        stored = {**json.loads((packed / "config.json").read_text()), "torch_dtype": "float32"}
        save_network(llm.core.runner.network, llm.core.spec, stored, again, shard_bytes=100_000)
        before = load_file(packed / "model.safetensors")
        after = {k: v for file in again.glob("*.safetensors") for k, v in load_file(file).items()}
        assert len(list(again.glob("*.safetensors"))) > 1
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert value.dtype == after[key].dtype, key
            assert torch.equal(value.view(torch.uint8), after[key].view(torch.uint8)), key
        assert torch.equal(open_llm(again).logits([prompt(9)])[0], llm.logits([prompt(9)])[0])


def test_float32_scales_stay_so_whatever_the_config_says(tmp_path):
    """V3.1: `scale_fmt: ue8m0`, scales in float32, and those of o_proj between powers of two."""
    packed, _ = write_checkpoint(tmp_path, V3, block=128)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["scale_fmt"] = "ue8m0"
    (packed / "config.json").write_text(json.dumps(config))
    llm = open_llm(packed)
    save_network(llm.core.runner.network, llm.core.spec, {**config, "torch_dtype": "float32"}, tmp_path / "again")
    before, after = (load_file(folder / "model.safetensors") for folder in (packed, tmp_path / "again"))
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    assert not torch.equal(before[name].log2(), before[name].log2().round())
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype, key
        assert torch.equal(value.view(torch.uint8), after[key].view(torch.uint8)), key


def spoil_by(name: str, value: torch.Tensor | None):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = next(k for k in tensors if k.endswith(name))
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil_by("layers.0.self_attn.o_proj.weight_scale_inv", None), "FP8 and has no scale"),
        (spoil_by("layers.0.self_attn.o_proj.weight_scale_inv", torch.ones(3, 3)), r"scale of .* is \[3, 3\], needed"),
        (spoil_by("layers.1.mlp.gate.weight", None), "1 tensors missing: model.layers.1.mlp.gate.weight"),
        (spoil_by("layers.1.mlp.gate.weight", torch.ones(6, 3)), r"gate.weight is \[6, 3\], needed \[6, 144\]"),
        (lambda t: t.update(surprise=torch.ones(1)), "1 tensors not of this model: surprise"),
        (spoil_by("layers.1.mlp.gate.weight", torch.ones(6, 144, dtype=torch.int32)), "gate.weight is I32, needed F64"),
        (spoil_by("layers.1.mlp.gate.weight", torch.ones(6, 144).to(torch.float8_e5m2)), "is F8_E5M2, needed"),
        (spoil_by("layers.0.self_attn.o_proj.weight_scale_inv", torch.ones(2, 1, dtype=torch.int32)), "is I32, needed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, change, words):
    packed, _ = write_checkpoint(tmp_path, V3, change=change)
    with pytest.raises(CheckpointError, match=words):
        open_llm(packed)


def test_a_hash_table_of_experts_that_are_not_there(tmp_path):
    def change(tensors):
        name = next(n for n in tensors if n.endswith("tid2eid"))
        tensors[name] = torch.full_like(tensors[name], 99)

    packed, _ = write_checkpoint(tmp_path, V4, change=change)
    with pytest.raises(CheckpointError, match="names experts 99 to 99; there are"):
        open_llm(packed)


def test_known_but_unused_tensors_are_passed_over(tmp_path):
    def change(tensors):
        tensors["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()

    packed, _ = write_checkpoint(tmp_path, V3, change=change)
    open_llm(packed)


@pytest.mark.parametrize("says_so", [True, False])
def test_a_dspark_drafter_is_named_and_skipped(tmp_path, says_so):
    """V4-Flash-0731 keeps one under mtp.*: three blocks and a Markov head, no enorm, no hnorm."""

    def change(tensors):
        for key in [k for k in tensors if k.startswith("mtp.0.") and ("norm" in k or "_proj" in k)]:
            del tensors[key]
        tensors["mtp.2.markov_head.markov_w1"] = torch.ones(4, 4)
        tensors["mtp.2.confidence_head.proj.weight"] = torch.ones(1, 4)

    config = {**V4, "dspark_block_size": 5} if says_so else V4
    packed, _ = write_checkpoint(tmp_path, config, change=change)
    core = LLM(packed, dtype="float32", max_context=512).core
    assert core.plan.max_draft == 0
    assert "known but not used yet: mtp." in core.notes[0]
    assert len(LLM.on(core).generate(prompt(5)).token_ids) > 0


def test_a_copy_without_mtp_runs_without_drafts(tmp_path):
    def change(tensors):
        for key in [k for k in tensors if ".layers.3." in k]:
            del tensors[key]

    packed, _ = write_checkpoint(tmp_path, V3, change=change)
    assert LLM(packed, dtype="float32", max_context=512).core.plan.max_draft == 0
    with pytest.raises(ConfigError, match="no MTP layer"):
        LLM(packed, dtype="float32", max_draft=2)


def test_files_that_are_cut_short_or_absent(tmp_path):
    packed, plain = write_checkpoint(tmp_path, V3)
    file = packed / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut short.*\(1000 missing\)"):
        open_llm(packed)
    file.write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match="no whole"):
        open_llm(packed)
    file.unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        open_llm(packed)
    (plain / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"1 shards that are not there: gone\.safetensors"):
        open_llm(plain)
    (plain / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"has no config.json \(it holds model"):
        open_llm(plain)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen2"}, "R1-Distill"),
        ({"model_type": "llama"}, "R1-Distill"),
        ({"model_type": "deepseek_v41"}, "V4.1"),
        ({"model_type": "gpt2"}, "tiefsee runs deepseek_v2"),
        ({}, "no model_type"),
    ],
)
def test_other_models_are_refused(tmp_path, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=words):
        open_llm(tmp_path)


def test_a_full_disk_leaves_nothing_half_done(tmp_path, monkeypatch):
    packed, _ = write_checkpoint(tmp_path, V3)
    llm = open_llm(packed)
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious").write_text("stays")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*are needed and"):
        save_network(llm.core.runner.network, llm.core.spec, V3, target)
    assert [p.name for p in target.iterdir()] == ["precious"]
    assert not list(tmp_path.glob("*.part"))


def test_memory_that_is_too_small(tmp_path, monkeypatch):
    packed, _ = write_checkpoint(tmp_path, V3)
    monkeypatch.setattr("tiefsee.ops.cpu.CpuOperators.free_bytes", staticmethod(lambda device: 100_000.0))
    with pytest.raises(MemoryError, match="too little"):
        open_llm(packed)
    monkeypatch.undo()
    with pytest.raises(MemoryError, match=r"needs? .* a context of 0 tokens would fit"):
        LLM(packed, dtype="float32", max_context=2048, max_draft=0, cache_bytes=100_000)
    assert LLM(packed, dtype="float32", max_draft=0, cache_bytes=500_000).core.max_context == 1024  # what fits


def test_sharded_and_single_files_are_one(tmp_path):
    _, plain = write_checkpoint(tmp_path, V3)
    tensors = load_file(plain / "model.safetensors")
    needed = open_llm(plain).logits([prompt(9)])[0]
    (plain / "model.safetensors").unlink()
    weight_map = {}
    for part in range(3):
        names = sorted(tensors)[part::3]
        file = f"model-{part}.safetensors"
        save_file({n: tensors[n] for n in names}, plain / file)
        weight_map |= dict.fromkeys(names, file)
    (plain / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(open_llm(plain).logits([prompt(9)])[0], needed)


def test_what_is_not_the_whole_model_is_not_saved(tmp_path):
    """One rank's share, and packed weights in a device's own order."""
    share = Network(tiny_spec("v3"), Operators(), Group(0, 2))
    with pytest.raises(CheckpointError, match=r"embed.weight is \[49, 48\] here, and \[97, 48\].* one rank's share"):
        save_network(share, tiny_spec("v3"), CONFIGS["v3"], tmp_path / "share")

    class Reordered(Weight):
        pass

    packed, _ = write_checkpoint(tmp_path, V3, block=128)
    llm = open_llm(packed)
    projection = llm.core.runner.network.layers[0].attn.wo
    projection.weight = Reordered(projection.weight.data, projection.weight.scale, projection.weight.packing)
    with pytest.raises(CheckpointError, match=r"attn\.wo\.weight lies in memory as a device's products want it"):
        save_network(llm.core.runner.network, llm.core.spec, V3, tmp_path / "reordered")
    assert not (tmp_path / "reordered").exists()
    assert not (tmp_path / "share").exists()
