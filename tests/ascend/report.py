"""Run Ascend's tests on a machine with a card, and write a report that can be attached to an issue.

python tests/ascend/report.py [pytest arguments]          (make ascend-hardware)

The report says which chip, which CANN, which torch_npu, what passed, what failed with its last lines, what was skipped
and why. It leaves out names of the machine and of users.
"""

from __future__ import annotations

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
REPORT = Path("ascend-report.md")
LAST_LINES = 15


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "900", f"--junit-xml={results}", "tests/ascend"]
        done = subprocess.run([*command, *arguments], cwd=ROOT, check=False)
        cases = list(ElementTree.parse(results).iter("testcase")) if results.exists() else []
    text = "\n".join([*heading(done.returncode), *table(cases), *details(cases)]) + "\n"
    REPORT.write_text(text)
    print(f"\n{REPORT.resolve()} holds the report; attach it to an issue, passed or not")
    return done.returncode


def heading(status: int) -> Iterable[str]:
    yield "# tiefsee on Ascend"
    yield ""
    yield f"* {datetime.now(UTC):%Y-%m-%d}, pytest's exit status {status}, tiefsee {git('rev-parse', 'HEAD')}"
    yield f"* chip: {card()}"
    yield f"* torch {version('torch')}, torch-npu {version('torch-npu')}, CANN {cann()}"
    yield f"* {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield ""


def table(cases: list[ElementTree.Element]) -> Iterable[str]:
    yield "| file | passed | failed | skipped | seconds |"
    yield "|---|---|---|---|---|"
    files: dict[str, list[ElementTree.Element]] = {}
    for case in cases:
        files.setdefault(case.get("classname", "?").rpartition(".")[2], []).append(case)
    for name, found in sorted(files.items()):
        outcomes = [outcome(c) for c in found]
        seconds = sum(float(c.get("time", 0)) for c in found)
        counts = " | ".join(str(outcomes.count(o)) for o in ("passed", "failed", "skipped"))
        yield f"| {name} | {counts} | {seconds:.1f} |"
    yield ""


def details(cases: list[ElementTree.Element]) -> Iterable[str]:
    for case in cases:
        for problem in [*case.findall("failure"), *case.findall("error")]:
            lines = (problem.text or problem.get("message", "")).strip().splitlines()[-LAST_LINES:]
            yield f"## {case.get('name')}\n\n```\n" + without_names("\n".join(lines)) + "\n```\n"
    reasons = [s.get("message", "") for case in cases for s in case.findall("skipped")]
    if reasons:
        yield "## Skipped\n"
        yield from (f"* {reasons.count(r)} x {without_names(r)}" for r in sorted(set(reasons)))


def outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def without_names(text: str) -> str:
    """Paths of a home or of this checkout tell who ran it."""
    return re.sub(r"/(home|Users|root)/[^/\s]+", "~", text.replace(str(ROOT), "."))


def card() -> str:
    sys.path.insert(0, str(ROOT))
    from tiefsee.errors import DeviceError
    from tiefsee.ops import open_device, operators_for

    try:
        return str(operators_for(open_device("npu:0")).chip)  # type: ignore[attr-defined]
    except DeviceError as error:
        return f"none ({error})"


def cann() -> str:
    import os

    home = os.environ.get("ASCEND_HOME_PATH")
    if not home:
        return "emulated" if "FAKECANN_START" in os.environ else "not found (ASCEND_HOME_PATH is not set)"
    files = [*Path(home).glob("**/ascend_toolkit_install.info"), *Path(home).glob("**/version.cfg")]
    found = [m[1] for f in files[:5] if (m := re.search(r"version=([\w.]+)", f.read_text()))]
    return found[0] if found else "version not found"


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
