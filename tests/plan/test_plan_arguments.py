"""Whatever is typed wrong after `tiefsee plan`: one line that says what was found, status 1 or 2, and no traceback."""

from __future__ import annotations

import pytest

from tiefsee.cli import main

SERVE = ("serve", "--model", "v3", "--chips", "h200:8")
TRAIN = ("train", "--model", "v3", "--chips", "h800:2048")
RL = ("rl", "--model", "v3", "--chips", "h800:512")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("serve", "--model", "nosuch", "--chips", "h200:8"), "presets are v2"),
        (("train", "--model", "nosuch", "--chips", "h200:8"), "presets are v2"),
        (("serve", "--model", "v3", "--chips", "h900:8"), "near are h800"),
        (("serve", "--model", "v3", "--chips", "920c:8"), "never appeared"),
        (("serve", "--model", "v3", "--chips", "h200:-8"), "needed is CHIP:COUNT"),
        (("serve", "--model", "v3", "--chips", "missing.toml:8"), "missing.toml cannot be read"),
        ((*SERVE, "--isl", "-5"), "needed is a prompt of 1 token or more"),
        ((*SERVE, "--against", "h900:8"), "near are h800"),
        ((*SERVE, "--html", "plan.txt"), "ends in .html"),
        ((*SERVE, "--html", "/no/such/folder/plan.html"), "there is no folder"),
        ((*SERVE, "--top", "0"), "--top is 0"),
        ((*SERVE, "--chips", "h20:16", "--scaling"), "leave --scaling out"),
        ((*SERVE, "--chips", "h20:16", "--goal", "cost"), "leave --goal out"),
        ((*TRAIN, "--layout", "pp=7,ep=64"), "does not divide 2048 ranks"),
        ((*TRAIN, "--layout", "qq=1"), "no part of a training layout"),
        ((*TRAIN, "--sequence", "0"), "--sequence is 0"),
        ((*TRAIN, "--tokens", "nan"), "above 0"),
        ((*TRAIN, "--date", "20x"), "needed is YYYY-MM-DD"),
        ((*TRAIN, "--storage", "5"), "never gets from one to the next"),
        ((*TRAIN, "--stack", "nobody"), "known are"),
        ((*TRAIN, "--scaling", "0,x"), "needed are counts"),
        ((*RL, "--longest", "9999999"), "exceeds the model's context"),
        ((*RL, "--answer-tokens", "0"), "an answer of 2"),
        (("rl", "--model", "v3", "--rollout", "h20:2", "--learner", "h800:256"), "GB short"),
        (("identify", "--model", "v3", "--measured", "/no/such.csv"), "cannot be read"),
    ],
)
def test_one_clear_line(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.startswith("tiefsee: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("nothing",), ("serve",), ("train", "--model", "v3"), ("identify",)])
def test_what_is_missing_is_named(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["plan", *words])
    assert status.value.code == 2
    assert "tiefsee plan" in capsys.readouterr().err
