"""Every example of docs/serve.md runs: Python against a server, shell commands by their options."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tiefsee.cli import build_parser

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
BLOCKS = re.findall(r"```(python)?\n(.*?)```", PAGE, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if not language]


@pytest.mark.parametrize("source", PYTHON)
def test_python(source, url, capsys):
    exec(compile(source.replace("http://127.0.0.1:8000", url), "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_curl(url):
    command = next(text for text in SHELL if text.startswith("curl"))
    done = subprocess.run(["bash", "-c", command.replace("http://127.0.0.1:8000", url)], capture_output=True, text=True)
    if done.returncode == 127:
        pytest.skip("there is no curl here")
    assert '"text":' in done.stdout


def test_commands_parse():
    lines = [line for text in SHELL for line in text.splitlines() if "tiefsee serve" in line]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(re.split(r"#|>>", line)[0])
        build_parser().parse_args(words[words.index("tiefsee") + 1 :])


def test_every_option_is_told():
    options = {
        name for action in build_parser()._subparsers._group_actions[0].choices["serve"]._actions
        for name in action.option_strings if name.startswith("--")
    }  # fmt: skip
    missing = {name for name in options - {"--help"} if name not in PAGE}
    assert not missing
