"""`make ascend-hardware`: the report that is attached to an issue."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.ascend import report
from tests.ascend.test_door import emulates, has_torch_npu, needs_emulator, without_cann
from tests.fakecann import environment

CASES = """<testsuite>
<testcase classname="tests.ascend.test_a" name="test_one" time="1.25">
  <properties><property name="largest error" value="0.50"/></properties></testcase>
<testcase classname="tests.ascend.test_a" name="test_two" time="0.75"><failure message="x">File "/home/jan/t/x.py"
E   assert 1 == 2</failure></testcase>
<testcase classname="tests.ascend.test_b" name="test_three" time="0"><skipped message="needs gcc"/></testcase>
</testsuite>"""


def run(folder: Path, variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, report.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, check=False, timeout=200)


def test_what_passed_failed_and_was_measured():
    cases = list(ElementTree.fromstring(CASES).iter("testcase"))
    assert "| test_a | 1 | 1 | 0 | 2.0 |" in report.table(cases)
    assert "| test_one | largest error | 0.50 |" in report.numbers(cases)
    told = "\n".join(report.details(cases))
    assert 'File "~/t/x.py"' in told
    assert "assert 1 == 2" in told
    assert "* 1 x needs gcc" in told


def test_names_are_left_out(monkeypatch):
    monkeypatch.setattr(report.platform, "node", lambda: "nora-7")
    assert report.without_names(f"{report.ROOT}/a /home/jan/b {Path.home()}/c nora-7:22") == "./a ~/b ~/c HOST:22"


@has_torch_npu
@needs_emulator
def test_without_cann_there_is_nothing_to_report(tmp_path):
    done = run(tmp_path, without_cann())
    assert done.returncode == report.NO_CARD
    assert "Traceback" not in done.stderr
    assert "no report: torch_npu is installed but does not load: libhccl.so" in done.stderr
    assert list(tmp_path.iterdir()) == []


@has_torch_npu
@emulates
@pytest.mark.parametrize(("tests", "status"), [("test_gating and v3", 0), ("no_such_test", 5)], ids=["some", "none"])
def test_on_the_emulator_it_says_so(tmp_path, tests, status):
    variables = environment("Ascend910B3", device_bytes=4_000_000_000)
    done = run(tmp_path, variables, "-k", tests, "-p", "no:cacheprovider")
    assert done.returncode == status, done.stderr
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    assert file.name == "ascend-report-emulated.md"
    assert text.startswith("# EMULATED: no Ascend was used")
    assert "chip: Ascend910B3 (emulated)" in text
    assert "attach it" not in done.stdout
    if status == 0:
        assert "| test_operators | 1 | 0 | 0 |" in text
        assert "| test_gating[v3] | largest error, in roundings of the result |" in text
