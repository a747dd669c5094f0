"""The chips: every figure has a father, names are found or explained, a user's own chip is read or refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tiefsee.errors import ConfigError
from tiefsee.hardware import chip_names, find_chip, link_for, load_chips, parse_fleet

NAMES = (
    "a100", "a800", "h100", "h800", "h20", "h200", "b200", "b300", "gb200", "gb300", "ascend-910b1", "ascend-910b2",
    "ascend-910b3", "ascend-910b4", "ascend-910c-die", "ascend-910c", "ascend-950pr", "ascend-950dt", "ascend-960",
    "ascend-970",
)  # fmt: skip
OWN = """
name = "mychip"
available = "2026"
memory = { value = "96 GB", kind = "vendor", source = "sheet" }
memory_bandwidth = { value = "2.4 TB/s", kind = "estimate", low = "2 TB/s", high = "2.6 TB/s", source = "a talk" }
bf16 = { value = "400 TFLOP/s", kind = "vendor", source = "sheet" }
[[links]]
tier = "node"
num_chips = 8
bandwidth = { value = "200 GB/s", kind = "vendor", source = "sheet" }
"""


def figures(chip):
    yield from chip.flops_per_s.values()
    yield from (chip.memory_bytes, chip.memory_bytes_per_s)
    yield from (f for f in (chip.tdp_w, chip.usd_per_hour, chip.purchase_usd) if f is not None)
    for link in chip.links:
        yield from (link.bytes_per_s, link.latency_s)


def test_all_that_the_issue_names_are_there():
    assert chip_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_unit_kind_source_and_range(name):
    chip = find_chip(name)
    for figure in figures(chip):
        assert figure.unit
        assert len(figure.source) > 8
        assert figure.low <= figure.value <= figure.high
        assert figure.kind != "estimate" or figure.low < figure.high
    assert chip.has("bf16")
    assert chip.links


def test_a_910c_is_two_dies():
    die, package = find_chip("ascend-910c-die"), find_chip("910C")
    assert (die.per, package.per) == ("die", "package")
    for name, peak in package.flops_per_s.items():
        assert peak.value == 2 * die.peak(name).value
    assert package.memory_bytes.value == 2 * die.memory_bytes.value
    assert package.memory_bytes_per_s.value == 2 * die.memory_bytes_per_s.value
    die_ub, package_ub = (next(x for x in c.links if x.tier == "supernode") for c in (die, package))
    assert package_ub.bytes_per_s.value == 2 * die_ub.bytes_per_s.value
    assert die_ub.num_chips == 2 * package_ub.num_chips


def test_what_chips_lack():
    with pytest.raises(ConfigError, match="does not multiply in fp8"):
        find_chip("ascend-910c").peak("fp8")
    assert find_chip("ascend-950dt").has("fp4")
    assert all(find_chip(name).usd_per_hour is None for name in NAMES if name.startswith("ascend"))
    assert find_chip("ascend-960").is_announced_only
    assert not find_chip("h200").is_announced_only


@pytest.mark.parametrize("name", ["H200", "h200_sxm", "h200-sxm", "  H200 "])
def test_names_in_any_case(name):
    assert find_chip(name).name == "h200"


@pytest.mark.parametrize(
    ("name", "words"),
    [("h2000", "h200"), ("920C", "ascend-950pr"), ("ascend-920c", "never appeared"), ("qqq", "there are a100")],
)
def test_unknown_names_are_explained(name, words):
    with pytest.raises(ConfigError, match=words):
        find_chip(name)


def test_links_by_the_size_of_a_group():
    h200, die = find_chip("h200"), find_chip("ascend-910c-die")
    assert [link_for(h200, n).tier for n in (2, 8, 9, 256)] == ["node", "node", "fabric", "fabric"]
    assert [link_for(die, n).tier for n in (2, 3, 768, 769)] == ["die", "supernode", "supernode", "fabric"]
    assert link_for(h200, 2, stride=8).tier == "fabric"
    assert link_for(find_chip("gb200"), 72).tier == "supernode"


def test_a_chip_of_ones_own(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    chip = find_chip(str(tmp_path / "own.toml"))
    assert (chip.name, chip.vendor, chip.memory_bytes.value) == ("mychip", "user", 96e9)
    assert chip.memory_bytes_per_s.low == 2e12
    assert parse_fleet(f"{tmp_path / 'own.toml'}:4")[1] == 4


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"96 GB"', "96", "without a unit"),
        ('"96 GB"', '"96 GB/s"', "cannot read '96 GB/s'"),
        (', source = "sheet" }\nmemory_', " }\nmemory_", "memory: no source"),
        ('low = "2 TB/s", high = "2.6 TB/s", ', "", "needs low and high"),
        ('"2 TB/s"', '"2.5 TB/s"', "not between low and high"),
        ('kind = "vendor"', 'kind = "rumour"', "kind is 'rumour'"),
        ("bf16", "bf17", "is bf16 meant"),
        ('tier = "node"', 'tier = "rack"', "a link's tier"),
        ("name = ", "nam = ", "has no name"),
        ('memory = { value = "96 GB"', 'memory = { value = "-96 GB"', "not above 0"),
        ("= {", "= [", "is no TOML"),
    ],
)
def test_a_chip_that_is_described_badly(tmp_path, old, new, words):
    (tmp_path / "own.toml").write_text(OWN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        load_chips(tmp_path / "own.toml")


@pytest.mark.parametrize("text", ["h200", "h200:0", "h200:x", ":8", "h200:-1"])
def test_pools_that_mean_nothing(text):
    with pytest.raises(ConfigError):
        parse_fleet(text)


def test_it_is_light():
    code = "import sys, tiefsee.hardware as h; h.find_chip('h200'); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
