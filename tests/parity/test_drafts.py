"""The gate looks at MTP layers: their operators, what they would draft, how many drafts are right."""

from __future__ import annotations

import pytest

from tests.parity.draft_faults import DRAFT_FAULTS
from tests.parity.matrix import PROMPTS, Model, engine, on, recording, reference_network
from tests.tiny import prompt
from tiefsee.ops import Operators
from tiefsee.parity.calls import OPERATORS
from tiefsee.parity.gate import compare, record

CASES = [(name, family) for name, fault in DRAFT_FAULTS.items() for family in fault.families]


def other(family):
    return on(reference_network(Model(family), "float32", None), Operators())


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_fault_of_an_mtp_layer_is_named(name, family, monkeypatch):
    """The decoder passes; the operator is blamed at its place, or the runs part where the fault is."""
    needed, fault, network = recording(Model(family)), DRAFT_FAULTS[name], other(family)
    fault.plant(network, monkeypatch)
    report = compare(needed, engine(network))
    assert not report.passed
    if fault.operator is not None:
        assert [o.operator for o in report.blamed] == [fault.operator], report.verdict()
        assert report.blamed[0].site.startswith(fault.place)
    else:
        assert not report.blamed, report.verdict()
        assert report.parts_at is not None
        assert report.parts_at.startswith(fault.place), report.parts_at
        assert "the MTP layer drafts otherwise" in report.verdict()
    failed = {c.name for p in report.prompts for c in p.checks if not c.passed}
    assert all(name.startswith("draft") for name in failed), failed


@pytest.mark.parametrize("family", ["v3", "v3.2", "v4"])
def test_its_operators_are_called(family):
    calls = [c for c in recording(Model(family)).calls if c.site.startswith("mtp.0")]
    missing = {"v3": ("grouped", "compress", "window", "hyper", "layer", "halves", "index", "entries", "keys"),
               "v3.2": ("grouped", "compress", "window", "hyper"),
               "v4": ("latent", "layer", "halves", "keys", "index", "entries", "compress")}[family]  # fmt: skip
    assert {c.operator for c in calls} == {o for o in OPERATORS if not any(word in o for word in missing)}


def test_drafts_are_counted_on_both_sides():
    report = compare(recording(Model("v3")), engine(other("v3")))
    assert report.passed
    assert report.reference_drafted == report.device_drafted
    assert report.reference_drafted.drafted > 10
    assert {p.draft_top1 for p in report.prompts} == {1.0}


def test_without_drafts_on_one_side_it_is_said():
    silent = compare(recording(Model("v3")), engine(other("v3"), max_draft=0))
    assert silent.passed
    assert any("MTP layer was not compared" in note for note in silent.notes)
    assert silent.device_drafted is None
    network = reference_network(Model("v3"), "float32", None)
    report = compare(record(engine(network, max_draft=0), PROMPTS), engine(network))
    assert report.passed
    assert any("MTP layer was not compared" in note for note in report.notes)


def test_prompts_of_one_token_and_one_draft():
    network = reference_network(Model("v3"), "float32", None)
    for num_new in (1, 2, 5):
        needed = record(engine(network, max_draft=1), {"one": prompt(1), "two": prompt(2)}, num_new=num_new)
        assert compare(needed, engine(network, max_draft=1), control=True).is_equal
