"""The chips: every figure has a father, names are found or explained, a user's own chip is read or refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.hardware.test_read import OWN
from tiefsee.errors import ConfigError
from tiefsee.hardware import chip_names, find_chip, link_for, parse_fleet
from tiefsee.hardware.catalogue import _plain

NAMES = (
    "a100", "a800", "h100", "h800", "h20", "h200", "b200", "b300", "gb200", "gb300", "ascend-910b1", "ascend-910b2",
    "ascend-910b3", "ascend-910b4", "ascend-910c-die", "ascend-910c", "ascend-950pr", "ascend-950dt", "ascend-960",
    "ascend-970", "cpu-zen4-2core",
)  # fmt: skip


def figures(chip):
    yield from chip.flops_per_s.values()
    yield from (chip.memory_bytes, chip.memory_bytes_per_s)
    yield from (f for f in (chip.tdp_w, chip.usd_per_hour, chip.purchase_usd, chip.launch_s) if f is not None)
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


# The figures that the project was given: shared facts of 2026-11, each per chip as the entry says.
# name: BF16, FP8, INT8, FP4 in TFLOP/s, GB, TB/s, GB/s of the scale-up link; None where there is none.
GIVEN = {
    "a100": (312, None, 624, None, 80, 2.039, 300), "a800": (312, None, 624, None, 80, 2.039, 200),
    "h100": (989, 1979, 1979, None, 80, 3.35, 450), "h800": (989, 1979, 1979, None, 80, 3.35, 200),
    "h20": (148, 296, 296, None, 96, 4.0, 450), "h200": (989, 1979, 1979, None, 141, 4.8, 450),
    "b200": (2250, 4500, 4500, 9000, 180, 7.7, 900), "b300": (2250, 4500, 153.5, 13500, 268, 8.0, 900),
    "gb200": (2500, 5000, 5000, 10000, 186, 8.0, 900), "gb300": (2500, 5000, 165, 15000, 288, 8.0, 900),
    "ascend-910b1": (414, None, 828, None, 64, 1.6, 196), "ascend-910b2": (376, None, 752, None, 64, 1.6, 196),
    "ascend-910b3": (313, None, 626, None, 64, 1.6, 196), "ascend-910b4": (280, None, 560, None, 32, 0.8, 196),
    "ascend-910c-die": (376, None, 752, None, 64, 1.6, 196), "ascend-910c": (752, None, 1504, None, 128, 3.2, 392),
    "ascend-950pr": (500, 1000, 1000, 2000, 128, 1.6, 1000), "ascend-950dt": (500, 1000, 1000, 2000, 144, 4.0, 1000),
    "ascend-960": (1000, 2000, 2000, 4000, 288, 9.6, 1100), "ascend-970": (2000, 4000, 4000, 8000, 288, 14.4, 2000),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_figures_are_those_that_were_given(name):
    chip, (*peaks, memory, bandwidth, link) = find_chip(name), GIVEN[name]
    for number_format, peak in zip(("bf16", "fp8", "int8", "fp4"), peaks, strict=True):
        assert chip.has(number_format) == (peak is not None)
        assert peak is None or chip.peak(number_format).value == pytest.approx(peak * 1e12)
    assert chip.memory_bytes.value == pytest.approx(memory * 1e9)
    assert chip.memory_bytes_per_s.value == pytest.approx(bandwidth * 1e12)
    scale_up = [x for x in chip.links if x.tier in ("node", "supernode")][-1]
    assert scale_up.bytes_per_s.value == pytest.approx(link * 1e9)


def test_what_chips_lack():
    with pytest.raises(ConfigError, match="does not multiply in fp8"):
        find_chip("ascend-910c").peak("fp8")
    assert find_chip("ascend-950dt").has("fp4")
    assert all(find_chip(name).usd_per_hour is None for name in NAMES if name.startswith("ascend"))
    assert find_chip("ascend-960").is_announced_only
    assert not find_chip("h200").is_announced_only


SPELLINGS = {
    "h200": ("H200", "h200_sxm", "h200-sxm", "  H200 ", "nvidia/H200", "NVIDIA H200", "h200-141gb"),
    "h100": ("h100-sxm", "h100_sxm", "H100 SXM5", "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
    "a100": ("NVIDIA A100-SXM4-80GB", "a100-80g"),
    "gb200": ("gb200-nvl72", "GB200 NVL72", "NVIDIA GB200"),
    "h20": ("H20-96G",),
    "ascend-910c": ("910c", "910C", "ascend910c", "Ascend 910C", "ascend_910c", "huawei-ascend-910c"),
    "ascend-910c-die": ("910c-die", "Ascend 910C die"),
    "ascend-910b3": ("Ascend910B3", "910b3", "Ascend910B"),
    "ascend-950dt": ("950DT", "ascend950dt"),
}


@pytest.mark.parametrize(("name", "typed"), [(name, typed) for name, all_ in SPELLINGS.items() for typed in all_])
def test_names_as_people_and_tools_spell_them(name, typed):
    assert find_chip(typed).name == name


def test_no_spelling_means_two_chips():
    names = [spelling for chip in map(find_chip, NAMES) for spelling in {_plain(n) for n in (chip.name, *chip.aliases)}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h2000", "near are h20, h200"), ("920C", "ascend-950pr"), ("ascend-920c", "never appeared"),
        ("Ascend 920", "never appeared"), ("910", "ascend-910"), ("h100-pcie", "near are h100"),
        ("qqq", "there are a100"), ("", "there are a100"), ("cpu", "run `tiefsee chips measure`"),
    ],
)  # fmt: skip
def test_unknown_names_are_explained(name, words, monkeypatch, tmp_path):
    monkeypatch.setenv("TIEFSEE_CHIPS", str(tmp_path))
    with pytest.raises(ConfigError, match=words):
        find_chip(name)


def test_a_folder_of_own_chips(monkeypatch, tmp_path):
    monkeypatch.setenv("TIEFSEE_CHIPS", str(tmp_path))
    (tmp_path / "cpu.toml").write_text(OWN)
    assert find_chip("CPU").name == "mychip"
    (tmp_path / "My Card.toml").write_text(OWN)
    assert find_chip("my-card").name == "mychip"
    (tmp_path / "h200.toml").write_text(OWN)
    assert find_chip("h200").vendor == "nvidia"  # the catalogue's names stay what they are
    monkeypatch.setenv("TIEFSEE_CHIPS", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="never measured"):
        find_chip("cpu")


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


@pytest.mark.parametrize("text", ["h200", "h200:0", "h200:x", ":8", "h200:-1", "h200:²", "h200:99999999"])
def test_pools_that_mean_nothing(text):
    with pytest.raises(ConfigError):
        parse_fleet(text)


def test_it_is_light():
    code = "import sys, tiefsee.hardware as h; h.find_chip('h200'); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
