"""The parity gate: finds every planted fault and names its operator, and blames no right change of numerics."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.parity.changes import CHANGES
from tests.parity.faults import FAULTS
from tests.parity.matrix import (
    PROMPTS,
    Model,
    engine,
    fault_cases,
    is_named,
    judge_change,
    judge_fault,
    on,
    recording,
    reference_network,
)
from tests.tiny import FAMILIES, prompt
from tiefsee.cli import main
from tiefsee.engine.cache import PagedView
from tiefsee.errors import ConfigError, RecordingError
from tiefsee.ops import Operators, operators_for
from tiefsee.parity.calls import OPERATORS, ROPE
from tiefsee.parity.gate import chosen_layers, compare, record
from tiefsee.parity.measures import Logits, first_divergence, logit_errors, pick_errors, row_errors
from tiefsee.parity.prompts import built_in, from_file, sparse_from
from tiefsee.parity.recording import Recording
from tiefsee.parity.tolerances import FORMATS, TOLERANCES, coarsest, overridden
from tiefsee.spec import preset

ALL_FAULTS = (*FAULTS, "shared expert dropped")


@pytest.mark.parametrize("name", ALL_FAULTS)
def test_no_fault_is_missed_and_its_operator_is_named(name):
    for family in (f for n, f in fault_cases() if n == name):
        report = judge_fault(name, Model(family), end_to_end=False)
        assert not report.passed, family
        assert is_named(name, report), (family, [o.operator for o in report.blamed])


@pytest.mark.parametrize("name", CHANGES)
def test_no_right_change_is_blamed(name):
    for family in FAMILIES:
        report = judge_change(name, Model(family))
        assert report.passed, (family, report.verdict())


def test_there_are_enough_of_both():
    assert len(ALL_FAULTS) >= 20
    assert len(CHANGES) >= 10
    assert {f.operator for f in FAULTS.values()} | {"linear"} == set(OPERATORS), "an operator without a fault"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operator_of_the_family_is_called(family):
    called = {c.operator for c in recording(Model(family)).calls}
    of_v4 = ("grouped", "compress", "window", "hyper")
    of_v32 = ("layer", "halves", "index", "entries", "keys")
    not_v4 = ("latent", "layer", "halves", "keys")
    missing = {"v2": of_v4 + of_v32, "v3": of_v4 + of_v32, "v3.2": of_v4, "v4": not_v4}[family]
    assert called == {o for o in (*OPERATORS, ROPE) if not any(word in o for word in missing)}


@pytest.mark.parametrize(("family", "reads"), [("v3", "history"), ("v4", "recent")])
def test_what_lies_between_operators_is_seen_end_to_end(family, reads, monkeypatch):
    """A cache that hands out a stale row: every operator is right by itself, the model is not."""
    needed = recording(Model(family))
    core = engine(on(reference_network(Model(family), "float32", None), Operators()))
    original = getattr(PagedView, reads)

    def stale(self, *arguments):
        rows = original(self, *arguments)
        if self.cache is not core.runner.cache or rows is None or len(rows) < 10:
            return rows
        rows = rows.clone()
        rows[-3] = rows[-4]
        return rows

    monkeypatch.setattr(PagedView, reads, stale)
    report = compare(needed, core)
    assert not report.blamed
    assert not report.passed
    assert "something between them" in report.verdict()


def test_a_fault_is_seen_end_to_end_as_well():
    for name, family in (("RoPE in the other layout", "v3"), ("sink left out", "v4"), ("one entry too few", "v3.2")):
        report = judge_fault(name, Model(family), operators=lambda operator: False)
        assert not report.operators
        assert not report.passed, name


def test_an_operator_that_refuses_is_a_finding():
    class Refuses(Operators):
        @staticmethod
        def rms_norm(x, weight, eps):
            if x.shape[-1] == 20:
                raise NotImplementedError("20 channels")
            return Operators.rms_norm(x, weight, eps)

    core = engine(on(reference_network(Model("v3"), "float32", None), Refuses()))
    report = compare(recording(Model("v3")), core, end_to_end=False)
    (blamed,) = report.blamed
    assert (blamed.operator, blamed.failure) == ("rms_norm", "NotImplementedError: 20 channels")
    assert "20 channels" in report.verdict()
    whole = compare(recording(Model("v3")), core, operators=lambda name: name == "linear")
    assert not whole.blamed
    assert whole.verdict() == "the prompts cannot be run: NotImplementedError: 20 channels"
    assert not whole.passed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_device_under_test(family, dtype, device):
    """The device's own operators and layout against the definition on the CPU; `--device` says which."""
    ops = operators_for(torch.device(device))
    network = on(reference_network(Model(family), dtype, None), ops).to(device)
    report = compare(recording(Model(family), dtype), engine(network))
    assert report.passed, report.verdict()


def test_experts_by_hash_are_never_a_near_tie():
    class Wrong(Operators):
        def route(self, hidden, weight, bias, router, tokens, experts_of_token):
            experts, weights = super().route(hidden, weight, bias, router, tokens, experts_of_token)
            return (experts, weights) if experts_of_token is None else ((experts + 1) % len(weight), weights)

    core = engine(on(reference_network(Model("v4"), "float32", None), Wrong()))
    (blamed,) = compare(recording(Model("v4")), core, end_to_end=False).blamed
    assert (blamed.operator, blamed.site) == ("route", "layers.0.ffn.gate")


def test_the_device_itself_passes_exactly():
    core = engine(on(reference_network(Model("v4"), "float32", None), Operators()))
    report = compare(recording(Model("v4")), core, control=True)
    assert report.passed
    assert report.is_equal
    assert report.verdict() == "equal: all logits and picks of all prompts are the same bit by bit"
    assert max(o.worst_error for o in report.operators) < 1e-6  # rows are repeated, and lie in other tiles
    assert {p.first_divergence for p in report.prompts} == {None}
    restored = json.loads(json.dumps(report.to_json()))
    assert restored["passed"] is True
    assert restored["format"] == "float32"
    assert len(restored["operators"]) == len(report.operators)


def test_not_a_number_is_a_finding_that_json_can_say():
    class Lost(Operators):
        @staticmethod
        def swiglu(gate, up, limit):
            return Operators.swiglu(gate, up, limit) * torch.nan

    report = compare(recording(Model("v3")), engine(on(reference_network(Model("v3"), "float32", None), Lost())))
    assert "swiglu" in report.verdict()
    assert '"worst_error": "inf"' in json.dumps(report.to_json(), allow_nan=False)
    assert not any(p.passed for p in report.prompts)


# --------------------------------------------------------------------------------------- recordings


def test_a_recording_in_a_file_is_as_good(tmp_path):
    path = tmp_path / "v4.safetensors"
    needed = recording(Model("v4"))
    assert needed.save(path) == path.stat().st_size
    loaded = Recording.load(path)
    core = engine(on(reference_network(Model("v4"), "float32", None), Operators()))
    found, direct = compare(loaded, core), compare(needed, core)
    assert found.prompts == direct.prompts
    assert [(o.operator, o.num_calls, o.num_rows) for o in found.operators] == [
        (o.operator, o.num_calls, o.num_rows) for o in direct.operators
    ]
    assert max(o.worst_error for o in found.operators) < 1e-6  # rows lie elsewhere in memory, and add up otherwise


def test_what_was_not_compared_is_said():
    network = reference_network(Model("v3.2"), "float32", None)
    report = compare(record(engine(network), {"short": prompt(9)}, num_new=2), engine(network))
    assert any("no prompt was long enough" in note for note in report.notes)
    assert not any("long enough" in note for note in compare(recording(Model("v3.2")), engine(network)).notes)


def test_a_recording_is_bounded():
    network = reference_network(Model("v3"), "float32", None)
    small = record(engine(network), PROMPTS, limit_bytes=100_000)
    assert sum(c.num_bytes for c in small.calls) <= 100_000
    assert small.num_left_out > 0
    report = compare(small, engine(network))
    assert report.passed
    assert any("were left out" in note for note in report.notes)


def test_recordings_that_cannot_be_used(tmp_path):
    path = tmp_path / "r.safetensors"
    with pytest.raises(RecordingError, match="cannot read the recording"):
        Recording.load(path)
    recording(Model("v3")).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordingError, match="cannot read the recording"):
        Recording.load(path)
    path.write_bytes(data.replace(b'\\"version\\": 2', b'\\"version\\": 9'))
    with pytest.raises(RecordingError, match="has version 9 of a recording; this tiefsee reads 2"):
        Recording.load(path)
    other = engine(reference_network(Model("v2"), "float32", None))
    with pytest.raises(RecordingError, match="is of another model"):
        compare(recording(Model("v3")), other)
    with pytest.raises(RecordingError, match="this engine holds 256"):
        compare(recording(Model("v3")), engine(reference_network(Model("v3"), "float32", None), max_context=256))
    with pytest.raises(RecordingError, match="cannot write"):
        recording(Model("v3")).save(tmp_path / "absent" / "r")


# ----------------------------------------------------------------------------------------- measures


def test_row_errors():
    needed = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    found = needed + torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    assert row_errors(found, needed).tolist() == pytest.approx([0.1, 0.0])
    found[1, 0] = torch.nan
    assert row_errors(found, needed)[1] == torch.inf
    same = torch.tensor([[-torch.inf, 1.0]])
    assert row_errors(same, same).tolist() == [0.0]


def test_picks_are_sets_and_near_ties_are_named():
    scores = torch.tensor([[4.0, 3.0, 2.9999, 1.0]])
    needed = torch.tensor([[0, 1]])
    cases = [([[1, 0]], 0, 0), ([[0, 2]], 1, 0), ([[0, 3]], 1, 1), ([[0, 0]], 1, 1), ([[0, 7]], 1, 1)]
    for picks, different, wrong in cases:
        found = pick_errors(torch.tensor(picks), needed, scores, None, 1e-3)
        assert (found.num_different, found.num_wrong) == (different, wrong), picks
    assert pick_errors(torch.tensor([[0, 2]]), needed, scores, None, 0.0).num_wrong == 1
    invisible = pick_errors(torch.tensor([[0, 3]]), needed, scores, torch.tensor([1]), 0.0)
    assert invisible.num_different == 0


def test_logits_of_a_large_vocabulary_are_compared_on_the_best():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 1000, generator=generator) * 4
    near = logits + 1e-3 * torch.randn(5, 1000, generator=generator)
    whole, best = (logit_errors(near, Logits.of(logits, n)) for n in (1000, 256))
    assert torch.allclose(whole.kl, best.kl, rtol=0.2)
    exact = torch.nn.functional.kl_div(
        near.double().log_softmax(-1), logits.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert torch.allclose(whole.kl, exact)
    assert logit_errors(logits * torch.nan, Logits.of(logits, 256)).error.isinf().all()


def test_first_divergence():
    assert first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert first_divergence([1, 5, 3], [1, 2, 3]) == 1


def test_limits_grow_with_the_format_and_can_be_changed():
    for finer, coarser in pairwise(FORMATS):
        assert TOLERANCES[finer].operator <= TOLERANCES[coarser].operator
        assert TOLERANCES[finer].experts >= TOLERANCES[coarser].experts
    assert coarsest(["plain", "float32"]) == "float32"
    assert coarsest(["bfloat16", "int8", "float32"]) == "int8"
    assert overridden(["bfloat16.operator=0.02"])["bfloat16"] == replace(TOLERANCES["bfloat16"], operator=0.02)
    for bad in ("bfloat16", "bf16.operator=1", "bfloat16.speed=1", "bfloat16.kl=small"):
        with pytest.raises(ConfigError, match="--tolerance"):
            overridden([bad])


# ----------------------------------------------------------------------------- layers, prompts, CLI


def test_chosen_layers_are_the_first_and_last_of_each_kind():
    assert chosen_layers(preset("v3")) == {0, 2, 3, 60}
    kinds = {(s.attention.kind, s.ffn.kind) for i, s in enumerate(preset("v4-flash").layers)
             if i in chosen_layers(preset("v4-flash"))}  # fmt: skip
    assert kinds == {(s.attention.kind, s.ffn.kind) for s in preset("v4-flash").layers}


def test_the_long_prompt_makes_indexers_choose():
    assert sparse_from(preset("v3")) == 0
    assert sparse_from(preset("v3.2")) == 2048
    assert sparse_from(preset("v4-flash")) == 2048
    core = engine(reference_network(Model("v3.2"), "float32", None))
    lengths = {name: len(tokens) for name, tokens in built_in(core).items()}
    assert lengths == {"short": 24, "middle": 90, "long": 600}


def test_prompts_of_a_file(tmp_path):
    core = engine(reference_network(Model("v2"), "float32", None))
    path = tmp_path / "p.jsonl"
    path.write_text('{"tokens": [3, 4, 5], "name": "three"}\n\n{"tokens": [9]}\n')
    assert from_file(path, core) == {"1: three": (3, 4, 5), "2: tokens": (9,)}
    cases = [
        ("{", "line 1 is not JSON"), ('{"text": 1}', 'no "prompt"'), ('{"tokens": [97]}', "ids below 97"),
        ('{"tokens": []}', "has 0 tokens"), ('{"prompt": "a"}', "no tokenizer.json"), ("", "holds no prompt"),
    ]  # fmt: skip
    for text, match in cases:
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            from_file(path, core)
    with pytest.raises(ConfigError, match="cannot read the prompts"):
        from_file(tmp_path / "absent", core)


def test_the_command(tmp_path, capsys):
    """Record on the definition, hold the CPU's own operators to it; a limit that nothing meets gives status 1."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "Once upon a time"}\n' + json.dumps({"tokens": prompt(60)}) + "\n")
    recorded = tmp_path / "reference.safetensors"
    base = ["check", "parity", "--model", "tiefsee-demo", "--max-context", "512"]
    assert main([*base, "--device", "reference", "--prompts", str(prompts), "--record", str(recorded)]) == 0
    assert "calls and 2 prompts" in capsys.readouterr().out
    assert main([*base, "--device", "cpu", "--against", str(recorded), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["device"]["operators"] == "cpu"
    strict = ["--tolerance", "bfloat16.composed=1e-9"]
    assert main([*base, "--device", "cpu", "--against", str(recorded), *strict]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "run_experts" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu"], "needed two devices"),
        (["--device", "cpu", "--device", "reference", "--record", "x"], "needed two devices"),
        (["--device", "cpu", "--against", "absent"], "cannot read the recording absent"),
        (["--device", "cpu", "--device", "tpu"], "tpu"),
        (["--device", "cpu", "--device", "cpu", "--tolerance", "x=1"], "--tolerance 'x=1'"),
        (["--device", "cpu", "--device", "cpu", "--dtype", "a,b,c"], "names 3 values"),
        (["--device", "cpu", "--against", "x", "--prompts", "y"], "--prompts has no meaning with --against"),
        (["--device", "cpu", "--against", "x", "--long", "9"], "--long has no meaning with --against"),
        (["--device", "cpu", "--device", "cpu", "--record-limit", "much"], "much"),
        (["--device", "cpu", "--device", "cpu", "--long", "0"], "--long is 0"),
        (["--device", "cpu", "--device", "cpu", "--max-context", "64"], "--max-context is 64"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert main(["check", "parity", "--model", "tiefsee-demo", "--max-context", "512", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_what_could_not_be_compared_is_no_failure_of_the_device(capsys, monkeypatch):
    """Status 2 and one JSON object, also where a device throws something that is none of our errors."""
    base = ["check", "parity", "--max-context", "512", "--json", "--device", "cpu", "--device", "cpu", "--model"]
    assert main([*base, "absent/model/x"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is None
    assert "absent/model/x" in said["error"]

    def broken(*_, **__):
        raise RuntimeError("driver lost")

    monkeypatch.setattr("tiefsee.parity.sides.open_side", broken)
    assert main([*base, "tiefsee-demo"]) == 2
    out = capsys.readouterr()
    assert json.loads(out.out)["error"] == "RuntimeError: driver lost"
    assert "Traceback" in out.err
