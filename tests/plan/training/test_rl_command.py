"""`tiefsee plan rl`: iterations add up, splits are searched, unlike pools go together, nonsense is refused."""

from __future__ import annotations

import argparse
import json

import pytest

from tiefsee.cli import plan_rl
from tiefsee.errors import ConfigError, OutOfMemory, TiefseeError

SMALL = ("--model", "v2-lite", "--prompts", "64", "--samples", "8", "--answer-tokens", "1024")


def options_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan_rl.add_options(parser)
    return parser.parse_args(words)


def test_shared_cards_are_split_as_is_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_rl.run(options_of(*SMALL, "--chips", "h100:32", "--iterations", "1000", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    placements = found["data"]["placements"]
    assert {p["placement"] for p in placements} == {"colocated", "separate"}
    times = [p["iteration_s"]["value"] for p in placements]
    assert times == sorted(times)
    for p in placements:
        parts, whole = p["parts_s"], p["iteration_s"]["value"]
        if p["placement"] == "colocated":
            assert sum(parts.values()) == pytest.approx(whole, rel=0.02)
            continue
        assert p["rollout_chips"] + p["learner_chips"] == 32
        longer = max(parts["rollout"] + parts["tail"], parts["reference"] + parts["update"])
        assert longer + parts["new weights"] == pytest.approx(whole, rel=0.02)
    figures = found["figures"]
    assert figures["days"]["value"] == pytest.approx(figures["iteration_s"]["value"] * 1000 / 86400)
    assert figures["usd"]["value"] == pytest.approx(figures["usd_per_iteration"]["value"] * 1000)
    assert figures["samples_per_hour"]["value"] == pytest.approx(3600 * 512 / figures["iteration_s"]["value"])
    for bar in found["charts"][0]["bars"]:
        assert sum(s for _, s in bar["parts"]) == pytest.approx(bar["total"]["value"], rel=1e-6)


def test_unlike_pools_each_in_their_own_format() -> None:
    found = plan_rl.answer(options_of(*SMALL, "--rollout", "ascend-910c:16", "--learner", "h100:16"))
    document = found.document(command="", date="2026-11-28")
    assert "Rollouts in int8" in document.answer
    assert "learning in fp8" in document.answer
    assert (found.found.best.rollout_chips, found.found.best.learner_chips) == (16, 16)
    assert found.found.best.usd_per_iteration is None  # nobody publishes what a 910C costs
    priced = plan_rl.answer(
        options_of(*SMALL, "--rollout", "ascend-910c:16", "--learner", "h100:16", "--price", "ascend-910c=1")
    )
    assert priced.found.best.usd_per_iteration is not None


def test_a_longer_tail_costs_time_and_hiding_it_gives_it_back() -> None:
    def iteration(*words: str) -> float:
        return plan_rl.answer(
            options_of(*SMALL, "--rollout", "h100:16", "--learner", "h100:16", *words)
        ).found.best.iteration_s.value

    assert iteration("--longest", "1024") == pytest.approx(iteration("--longest", "8192", "--tail-hidden", "1"))
    assert iteration("--longest", "8192") > iteration("--longest", "2048")


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ((), ConfigError, "needed are either --chips"),
        (("--rollout", "h100:8"), ConfigError, "needed are either --chips"),
        (("--chips", "h100:8", "--longest", "10"), ConfigError, "longest >= mean"),
        (("--chips", "h100:8", "--tail-hidden", "2"), ConfigError, "tail_hidden from 0 to 1"),
        (("--chips", "h100:8", "--prompts", "0"), ConfigError, "needed is 1 or more"),
        (("--chips", "h100:8", "--iterations", "0"), ConfigError, "--iterations is 0"),
        (("--chips", "nothing:8"), TiefseeError, "nothing"),
        (("--chips", "h100:8", "--layout", "pp"), ConfigError, "name=value"),
    ],
)
def test_bad_input_is_one_clear_error(words: tuple[str, ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        plan_rl.answer(options_of(*SMALL, *words))


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(OutOfMemory):
        plan_rl.answer(options_of("--model", "v4-pro", "--chips", "h100:8"))
