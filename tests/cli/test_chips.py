"""`tiefsee chips` as a user meets it: real processes with torch blocked, one line per error."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.test_cli import BLOCK_TORCH, one_line_error
from tests.hardware.test_read import OWN
from tiefsee.hardware import chip_names, find_chip, load_chips


@pytest.fixture
def chips(monkeypatch, tmp_path):
    """Runs `tiefsee chips ...` with an empty folder of own chips."""
    monkeypatch.setenv("TIEFSEE_CHIPS", str(tmp_path / "own"))

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", BLOCK_TORCH, "chips", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


def lines_of(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def test_the_list_has_every_chip_and_its_price(chips):
    lines = lines_of(chips())
    rows = {line.split()[0]: line.split() for line in lines}
    assert set(chip_names()) <= set(rows)
    assert rows["h200"] == "h200 package 141 4.8 989 1,979 1,979 - 450x8 NVLink 50 1.41..1.74 2024".split()  # noqa: SIM905
    assert rows["ascend-910c-die"][-6:] == ["~270x2,", "196x768", "UB", "25", "-", "2025"]
    assert max(map(len, lines)) <= 120


def test_the_list_in_json_is_in_base_units(chips):
    found = {chip["name"]: chip for chip in json.loads(chips("--json").stdout)["chips"]}
    assert found["h200"]["memory_bytes"]["value"] == 141e9
    assert found["h200"]["flops_per_s"]["bf16"]["unit"] == "flops/s"
    assert found["ascend-910c"]["usd_per_hour"] is None
    assert [link["tier"] for link in found["ascend-910c-die"]["links"]] == ["die", "supernode", "fabric"]
    assert json.loads(chips("show", "910c", "--json").stdout)["name"] == "ascend-910c"


def test_own_chips_are_listed_and_unreadable_ones_told(chips, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.toml").write_text(OWN)
    (tmp_path / "own" / "broken.toml").write_text("name = 3")
    done = chips()
    assert any(line.startswith("mychip") for line in lines_of(done))
    assert "left out" in done.stderr
    assert "broken.toml" in done.stderr


def test_show_prints_sources_and_what_there_is_to_know(chips):
    text = chips("show", "ascend-910c").stdout
    for words in ("per package", "2 dies a package", "752 TFLOP/s", "707.8 TFLOP/s to 800", "arXiv 2506.12708",
                  "no FP8", "up to 384", "has no price"):  # fmt: skip
        assert words in text
    assert "announced for 2026-12" in chips("show", "950dt").stdout


def test_show_as_toml_is_the_start_of_ones_own(chips, tmp_path):
    (tmp_path / "mine.toml").write_text(chips("show", "h20", "--toml").stdout.replace('"h20"', '"mine"', 1))
    mine = find_chip(str(tmp_path / "mine.toml"))
    assert mine.name == "mine"
    assert mine.memory_bytes == find_chip("h20").memory_bytes


def test_compare_gives_ratios_to_the_first(chips, tmp_path):
    (tmp_path / "mine.toml").write_text(OWN)
    arguments = ("compare", "h200", "ascend-910c", str(tmp_path / "mine.toml"), "--price", "910c=1.2..1.8")
    text = chips(*arguments).stdout
    assert "x0.76" in text
    rows = {row["figure"]: row for row in json.loads(chips(*arguments, "--json").stdout)["rows"]}
    assert rows["BF16"]["ratios"] == [1, pytest.approx(752 / 989), pytest.approx(400 / 989)]
    assert rows["FP8"]["values"][1] is None
    assert rows["price"]["values"] == [1.57, pytest.approx((1.2 * 1.8) ** 0.5), None]
    assert rows["BF16 FLOP per byte"]["values"][0] == pytest.approx(989 / 4.8)
    assert rows["bandwidth per USD/h"]["values"][1:] == [pytest.approx(3.2e12 / (1.2 * 1.8) ** 0.5), None]


def test_measure_writes_a_chip_that_is_then_known_as_cpu(chips, tmp_path):
    done = chips("measure", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    written = tmp_path / "own" / "cpu.toml"
    assert done.stdout == written.read_text()
    (cpu,) = load_chips(written)
    assert cpu.flops_per_s["fp32"].kind == "measured"
    assert "tiefsee chips measure" in cpu.memory_bytes_per_s.source
    assert find_chip("cpu").memory_bytes == cpu.memory_bytes
    assert "cpu" in chips("show", "cpu").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "h2000"), "near are h20, h200"),
        (("show", "920C"), "never appeared"),
        (("show", "cpu"), "tiefsee chips measure"),
        (("compare", "h200", "absent.toml"), "absent.toml cannot be read"),
        (("compare", "h200", "--price", "h200"), "needed is CHIP=USD"),
        (("compare", "h200", "--price", "h200=0"), "above 0"),
        (("compare", "h200", "--price", "b200=2"), "b200, which is not among"),
        (("measure", "--seconds", "-1"), "needed is 0.05 to 3600"),
        (("measure", "--with-torch"), "leave out --with-torch"),
        (("measure", "--out", "/nowhere/at/all.toml"), "there is no folder"),
    ],
)
def test_errors_are_one_line_each(chips, arguments, words):
    assert words in one_line_error(chips(*arguments))
