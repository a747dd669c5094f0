"""Run Ascend's tests on a machine with a card, and write a report that can be attached to an issue.

python tests/ascend/report.py [pytest arguments]          (make ascend-hardware)

The report says which chip, which driver, CANN and torch_npu, what passed, how far results were from the definition,
what failed with its last lines, what was skipped and why. It leaves out names of the machine and of users. Without a
card there is nothing to report; on the emulated CANN the report is for trying this script, and says so.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMULATED = "FAKECANN_START" in os.environ
REPORT = Path("ascend-report-emulated.md" if EMULATED else "ascend-report.md")
LAST_LINES = 15
NO_CARD = 2
DRIVER = Path("/usr/local/Ascend/driver/version.info")
Case = ElementTree.Element


def main(arguments: list[str]) -> int:
    chip, error = card()
    if chip is None:
        print(f"no report: {error}", file=sys.stderr)
        return NO_CARD
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        # Without the tests of this very script, which run it.
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "900", f"--junit-xml={results}"]
        command += ["tests/ascend", "--ignore=tests/ascend/test_report.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(results).iter("testcase")) if results.exists() else []
    text = "\n".join([*heading(chip, done.returncode), *table(cases), *numbers(cases), *details(cases)]) + "\n"
    REPORT.write_text(text)
    print(f"\n{REPORT.resolve()} holds the report" + ("" if EMULATED else "; attach it to an issue, passed or not"))
    return done.returncode


def card() -> tuple[str | None, str]:
    """The chip as CANN names it; or None, and why there is none."""
    sys.path.insert(0, str(ROOT))
    from tiefsee import leave_vendors_out

    leave_vendors_out()
    from tiefsee.errors import DeviceError
    from tiefsee.ops import open_device, operators_for

    try:
        return str(operators_for(open_device("npu:0")).chip), ""  # type: ignore[attr-defined]
    except DeviceError as error:
        return None, str(error)


def heading(chip: str, status: int) -> Iterable[str]:
    if EMULATED:
        yield "# EMULATED: no Ascend was used"
        yield ""
        yield "This report is of `tests/fakecann`, an emulated CANN, and says nothing about hardware. Do not attach it."
    else:
        yield "# tiefsee on Ascend"
    yield ""
    yield f"* {datetime.now(UTC):%Y-%m-%d}, pytest's exit status {status}, tiefsee {commit()}"
    yield f"* chip: {chip}{' (emulated)' if EMULATED else ''}, driver {driver()}, CANN {cann()}"
    yield f"* torch {version('torch')}, torch-npu {version('torch-npu')}"
    yield f"* {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield ""


def table(cases: list[Case]) -> Iterable[str]:
    yield "| file | passed | failed | skipped | seconds |"
    yield "|---|---|---|---|---|"
    files: dict[str, list[Case]] = {}
    for case in cases:
        files.setdefault(case.get("classname", "?").rpartition(".")[2], []).append(case)
    for name, found in sorted(files.items()):
        outcomes = [outcome(c) for c in found]
        seconds = sum(float(c.get("time", 0)) for c in found)
        counts = " | ".join(str(outcomes.count(o)) for o in ("passed", "failed", "skipped"))
        yield f"| {name} | {counts} | {seconds:.1f} |"
    yield ""


def numbers(cases: list[Case]) -> Iterable[str]:
    """What tests have measured, each value that one of them noted, in the order of the tests."""
    noted = [(c.get("name", "?"), p.get("name", ""), p.get("value", "")) for c in cases for p in c.iter("property")]
    if noted:
        yield "| test | what | value |"
        yield "|---|---|---|"
        yield from (f"| {test} | {what} | {value} |" for test, what, value in noted)
        yield ""


def details(cases: list[Case]) -> Iterable[str]:
    for case in cases:
        for problem in [*case.findall("failure"), *case.findall("error")]:
            lines = (problem.text or problem.get("message", "")).strip().splitlines()[-LAST_LINES:]
            yield f"## {case.get('name')}\n\n```\n" + without_names("\n".join(lines)) + "\n```\n"
    reasons = [s.get("message", "") for case in cases for s in case.findall("skipped")]
    if reasons:
        yield "## Skipped\n"
        yield from (f"* {reasons.count(r)} x {without_names(r)}" for r in sorted(set(reasons)))


def outcome(case: Case) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def without_names(text: str) -> str:
    """Without what tells who ran it, and where: paths of a home or of this checkout, and the machine's name."""
    text = text.replace(str(ROOT), ".").replace(str(Path.home()), "~")
    text = re.sub(r"/(home|Users)/[^/\s'\"]+", "~", text)
    return re.sub(rf"\b{re.escape(platform.node())}\b", "HOST", text) if platform.node() else text


def driver() -> str:
    found = re.search(r"(?i)^version=(\S+)", DRIVER.read_text(), re.MULTILINE) if DRIVER.is_file() else None
    return found[1] if found else "not found"


def cann() -> str:
    home = os.environ.get("ASCEND_HOME_PATH")
    if EMULATED:
        return "emulated"
    if not home:
        return "not found (ASCEND_HOME_PATH is not set)"
    files = [*Path(home).glob("**/ascend_toolkit_install.info"), *Path(home).glob("**/version.cfg")]
    found = [m[1] for f in files[:5] if (m := re.search(r"(?i)version=\[?([\w.]+)", f.read_text()))]
    return found[0] if found else "version not found"


def commit() -> str:
    """Of the checkout, with a word if files differ from it."""
    at = git("rev-parse", "HEAD") or "unknown"
    return at + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
