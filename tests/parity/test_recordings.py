"""Recordings and reports: what cannot be used is refused in a line, what goes to others holds no text."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.parity.draft_faults import DRAFT_FAULTS
from tests.parity.limits import WEAK, judge, verdict
from tests.parity.matrix import PROMPTS, Model, engine, judge_fault, on, recording, reference_network
from tests.tiny import prompt, tiny_network
from tiefsee.cli import main
from tiefsee.engine import EngineCore
from tiefsee.errors import RecordingError
from tiefsee.model import Network
from tiefsee.ops import Operators
from tiefsee.parity.gate import compare, record
from tiefsee.parity.recording import Recording

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "parity_report.schema.json").read_text())


def other(family, ops=None):
    return on(reference_network(Model(family), "float32", None), ops or Operators())


# ---------------------------------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    network = reference_network(Model("v3.2"), "float32", None)
    path = tmp_path_factory.mktemp("recording") / "r.safetensors"
    record(engine(network), {"a": prompt(30)}, num_new=2, limit_bytes=100_000).save(path)
    return path, path.read_bytes()


@settings(max_examples=60)
@given(place=st.integers(0, 1 << 30), bit=st.integers(0, 7), cut=st.booleans())
def test_no_altered_byte_goes_unseen(file, place, bit, cut):
    path, data = file
    altered = bytearray(data)
    if cut:
        del altered[place % len(data) :]
    else:
        altered[place % len(data)] ^= 1 << bit
    path.write_bytes(altered)
    with pytest.raises(RecordingError):
        Recording.load(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "x"
    for content, match in ((b"", "cannot read"), (b"{}" * 40, "cannot read"), (None, "cannot read")):
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(RecordingError, match=match):
            Recording.load(path)
        path.rmdir() if content is None else path.unlink()
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(RecordingError, match="is no recording but another safetensors file"):
        Recording.load(path)


def test_an_interrupted_recording_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recording(Model("v3")).save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_with_nothing_left(tmp_path, monkeypatch, capsys):
    step, count = EngineCore.step, itertools.count()

    def interrupted(self):
        if next(count) == 3:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(EngineCore, "step", interrupted)
    base = ["check", "parity", "--model", "tiefsee-demo", "--max-context", "512", "--device", "cpu"]
    assert main([*base, "--record", str(tmp_path / "r")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "tiefsee: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_reference_that_is_no_number_holds_nothing_to_itself():
    """Both sides nan is no agreement."""

    class Lost(Operators):
        @staticmethod
        def rms_norm(x, weight, eps):
            return Operators.rms_norm(x, weight, eps) * (torch.nan if x.shape[-1] == 20 else 1.0)

    with pytest.raises(RecordingError, match="not finite, prompt 'short' from position 0 on"):
        record(engine(other("v3", Lost())), PROMPTS)

    class Partly(Operators):
        def run_experts(self, hidden, *rest):
            out = Operators.run_experts(self, hidden, *rest)
            out[-1, 0] = torch.inf
            return out

    report = compare(recording(Model("v3")), engine(other("v3", Partly())), end_to_end=False)
    assert [o.operator for o in report.blamed] == ["run_experts"]


# -------------------------------------------------------------------------------------- the two sides


def test_unlike_settings_are_named():
    """The same weights under another config.json: not a matter of numerics."""
    network = other("v3")
    changed = Network(replace(network.spec, rms_norm_eps=1e-5), Operators())
    changed.load_state_dict(network.state_dict())
    report = compare(recording(Model("v3")), engine(changed.eval().requires_grad_(False)))
    assert not report.passed
    assert report.unlike_settings == ("rms_norm_eps: 1e-06 there, 1e-05 here",)
    assert report.verdict() == "not the same: two unlike config.json: rms_norm_eps: 1e-06 there, 1e-05 here"


def test_another_number_of_picks_is_a_finding():
    class Fewer(Operators):
        def select_experts(self, scores, bias, router):
            return Operators.select_experts(scores, bias, replace(router, num_experts_per_tok=1))

        def route(self, hidden, weight, bias, router, tokens, experts_of_token):
            if experts_of_token is not None:
                return Operators.route(self, hidden, weight, bias, router, tokens, experts_of_token)
            return Operators.route(self, hidden, weight, bias, router, tokens, None)

    report = compare(recording(Model("v3")), engine(other("v3", Fewer())))
    assert [o.operator for o in report.blamed] == ["select_experts"]
    assert not any(p.passed for p in report.prompts)


def test_a_device_that_is_not_equal_to_itself():
    class Restless(Operators):
        @staticmethod
        def linear(x, weight, bias=None):
            return Operators.linear(x, weight, bias) * (1 + 1e-7 * torch.rand(()))

    needed = record(engine(other("v3", Restless())), {"a": prompt(20)})
    report = compare(needed, engine(other("v3", Restless())), control=True)
    assert report.is_within_limits
    assert not report.passed
    assert "not equal to itself" in report.verdict()
    assert compare(needed, engine(other("v3", Restless()))).passed


def test_tied_matrices_go_by_either_name():
    network = tiny_network("v3", tie_word_embeddings=True)
    network.head.weight = network.embed.weight
    report = compare(record(engine(network), {"a": prompt(20)}), engine(on(network, Operators())), control=True)
    assert report.is_equal


@pytest.mark.parametrize(
    ("name", "strength", "dtype"),
    [
        ("the last row of a tile of 64 too large", 1e-4, "float32"),
        ("the last row of a tile of 64 too large", 1.0, "bfloat16"),
        ("one output channel of every linear too large", 0.3, "bfloat16"),
        ("one expert of 64 too large", 0.3, "bfloat16"),
        ("one expert bias of 64 off, as a share of the largest", 0.01, "bfloat16"),
        ("RoPE's theta too large", 1e-3, "bfloat16"),
        ("YaRN's factor of the tables left out", 1.0, "bfloat16"),
        ("router's scores in BF16", 1.0, "bfloat16"),
        ("every linear too large by this share", 0.03, "bfloat16"),
        ("cache: the first row of every block but the first is the one before", 1.0, "bfloat16"),
        ("cache: two rows of one block exchanged", 1.0, "bfloat16"),
    ],
)
def test_weak_faults_are_found(name, strength, dtype):
    """Of the table of docs/parity.md what a prefill's few rows, a row's error alone and a median would not show."""
    report = judge(name, strength, dtype)
    assert verdict(name, report) == ("seen" if WEAK[name].operator is None else "named"), report.verdict()


def test_where_they_part_is_a_layer_that_was_not_looked_at():
    report = judge("one linear of a layer that is not looked at too large", 0.3, "float32")
    assert not report.blamed
    assert report.parts_at.startswith("layers.3.attn, prompt")
    assert "they part at layers.3.attn" in report.verdict()


def test_all_layers_are_looked_at_where_it_is_asked():
    network = reference_network(Model("v3.2", 0, "heads"), "float32", None)
    needed = record(engine(network), {"a": prompt(40)}, all_layers=True)
    judged = on(network, Operators())
    judged.layers[3].attn.wo.weight.data *= 1.1
    (blamed,) = compare(needed, engine(judged), end_to_end=False).blamed
    assert (blamed.operator, blamed.site) == ("linear", "layers.3.attn.wo")


# -------------------------------------------------------------------------------------------- reports


def test_reports_are_as_their_schema_says(monkeypatch):
    """Passed, failed, with infinities, with drafts, without: one form."""
    reports = [
        compare(recording(Model("v4")), engine(other("v4")), control=True),
        compare(recording(Model("v2")), engine(other("v2"))),
        judge_fault("sink left out", Model("v4")),
    ]
    network = other("v3")
    DRAFT_FAULTS["hidden state of the wrong position"].plant(network, monkeypatch)
    reports.append(compare(recording(Model("v3")), engine(network)))

    class Refuses(Operators):
        @staticmethod
        def swiglu(gate, up, limit):
            raise NotImplementedError("no")

    reports.append(compare(recording(Model("v3")), engine(other("v3", Refuses()))))
    for report in reports:
        jsonschema.validate(json.loads(json.dumps(report.to_json(), allow_nan=False)), SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_no_text_of_a_prompt_goes_into_a_report(tmp_path, capsys):
    """Reports are attached to issues. A recording is another matter: it holds the tokens."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("The patient's name is Melchior\n")
    base = ["check", "parity", "--model", "tiefsee-demo", "--max-context", "256", "--prompts", str(prompts)]
    assert main([*base, "--device", "cpu", "--device", "cpu", "--json"]) == 0
    told = capsys.readouterr()
    assert "Melchior" not in told.out + told.err
    report = json.loads(told.out)
    jsonschema.validate(report, SCHEMA)
    assert report["equal"]
    assert report["control"]
    assert [p["name"] for p in report["prompts"]] == ["1: text"]
    file = tmp_path / "r.safetensors"
    assert main([*base, "--device", "cpu", "--record", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 1
    assert b"Melchior" not in file.read_bytes()
    assert Recording.load(file).prompts["1: text"]
