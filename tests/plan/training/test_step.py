"""Step time: published figures are met, units scale, the schedules' closed forms hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.training.jobs import job, slower_chip, v3_on_h800
from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.hardware import find_chip
from tiefsee.plan.training.efficiency import training_calibration
from tiefsee.plan.training.exchange import distinct, expert_exchange
from tiefsee.plan.training.job import make_job
from tiefsee.plan.training.layout import TrainLayout, check_layout, read_layout
from tiefsee.plan.training.plan import plan_training
from tiefsee.plan.training.predict import predict_training
from tiefsee.plan.training.schedule import timeline
from tiefsee.plan.training.stages import cut
from tiefsee.plan.training.times import Times
from tiefsee.spec import preset
from tiefsee.spec.model import MoE


def test_v3_on_2048_h800_is_within_10_percent_and_so_is_every_part_of_its_step() -> None:
    """Insights into DeepSeek-V3 (ISCA 2025), table 4: the run's step and its parts."""
    found = v3_on_h800()
    assert found.value("step_s") == pytest.approx(19.926, rel=0.1)
    assert found.value("tokens_per_s_per_chip") == pytest.approx(1543, rel=0.1)
    for name, seconds in {"1F": 1.13, "1B": 1.99, "1W": 0.48, "1F1B": 13.95, "bubble": 2.06, "opt": 0.29}.items():
        assert found.parts[name] == pytest.approx(seconds, rel=0.1), name
    assert sum(found.parts.values()) == pytest.approx(found.value("step_s"))
    assert found.plan.tflops_per_chip["causal"] == pytest.approx(385, rel=0.1)
    assert found.plan.tflops_per_chip["non_causal"] == pytest.approx(432, rel=0.1)
    assert found.value("mfu") == pytest.approx(0.3894, rel=0.1)
    # 2.664 M GPU hours for 14.8 T tokens (the V3 report, table 1).
    assert found.value("gpu_hours") == pytest.approx(2.664e6, rel=0.1)
    assert found.grade == "measured"
    # Four times as many were never seen, nor was another chip.
    assert predict_training("v3", "h800", 16384, layout={"pp": 16, "ep": 64}, batch=122880).grade == "fitted"
    assert predict_training("v3", "ascend-950dt", 2048, layout={"ep": 64}, batch=15360).grade == "rumour"
    assert sum(found.plan.where.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("chip", "layout"), [("h800", {"pp": 16, "ep": 64}), ("ascend-910c", {"tp": 2, "pp": 4, "ep": 64})]
)
@pytest.mark.parametrize("k", [7.0])
def test_a_world_with_k_times_slower_clocks_takes_exactly_k_times_as_long(
    chip: str, layout: dict[str, int], k: float
) -> None:
    calibration = training_calibration()
    plans = []
    for factor in (1.0, k):
        own = make_job("v3", preset("v3"), slower_chip(find_chip(chip), factor), 2048, optimizer="muon")
        e = calibration.of(own.rank_chip, calibration.stack(None, own.rank_chip)).slower(factor)
        plans.append(plan_training(own, layout, efficiency=e, slower=factor))
    one, slow = plans
    assert slow.step.seconds == pytest.approx(k * one.step.seconds, rel=1e-12)
    for name, seconds in one.step.parts.items():
        assert slow.step.parts[name] == pytest.approx(k * seconds, rel=1e-12), name
    assert slow.days.value == pytest.approx(k * one.days.value, rel=1e-12)
    assert slow.chip_hours.high == pytest.approx(k * one.chip_hours.high, rel=1e-12)
    assert slow.goodput.interval_s == pytest.approx(k * one.goodput.interval_s)
    assert slow.goodput.share.value == pytest.approx(one.goodput.share.value, rel=1e-12)


def simulated_1f1b(p: int, m: int, forward: float, backward: float) -> float:
    """Each stage works through its own 1F1B order as soon as what it needs is there."""
    orders = []
    for stage in range(p):
        warm = min(m, p - 1 - stage)
        order = [("F", i) for i in range(warm)]
        for i in range(m - warm):
            order += [("F", warm + i), ("B", i)]
        orders.append(order + [("B", i) for i in range(m - warm, m)])
    done: dict[tuple[str, int, int], float] = {}
    clock, at = [0.0] * p, [0] * p
    while any(at[s] < len(orders[s]) for s in range(p)):
        for s in range(p):
            while at[s] < len(orders[s]):
                kind, i = orders[s][at[s]]
                needs = ("F", i, s - 1) if kind == "F" and s else ("B", i, s + 1) if kind == "B" and s < p - 1 else None
                if needs is not None and needs not in done:
                    break
                start = max(clock[s], done[needs] if needs else 0.0)
                clock[s] = done[(kind, i, s)] = start + (forward if kind == "F" else backward)
                at[s] += 1
    return max(clock)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 4), (8, 20)])
def test_1f1b_takes_what_a_simulation_of_it_takes(p: int, m: int) -> None:
    times = Times(forward=2.0, backward=2.0, weight=2.0)
    line = timeline([times] * p, TrainLayout(pp=p), m, overlap=False, tax=0.1)
    assert line.total == pytest.approx(simulated_1f1b(p, m, 2.0, 4.0))


def test_bubbles_are_those_of_the_v3_report() -> None:
    """Table 2, without exchanges: F = B_input = W = 1, so B = 2 and F&B = 3."""
    t = [Times(forward=1.0, backward=1.0, weight=1.0)] * 8

    def bubble(schedule: str, **sizes: int) -> float:
        layout = TrainLayout(pp=8, schedule=schedule, **sizes)  # type: ignore[arg-type]
        return timeline(t, layout, 32, overlap=schedule == "dualpipe", tax=0.0).bubble

    assert bubble("1f1b") == pytest.approx(7 * 3)
    assert bubble("interleaved", virtual=2) == pytest.approx(7 * 3 / 2)
    assert bubble("zero-bubble") == pytest.approx(7 * (1 + 2 - 2 * 1))
    assert bubble("dualpipe") == pytest.approx(3 * (3 + 2 - 3 * 1))


def test_dualpipe_hides_the_all_to_all_until_it_is_longer_than_the_arithmetic() -> None:
    few, many = (Times(forward=1, backward=1, weight=1, experts=x, experts_back=x) for x in (1.0, 3.0))
    assert few.pair(0.0) == pytest.approx(3.0)
    assert few.alone == pytest.approx(5.0)
    assert many.pair(0.0) == pytest.approx(6.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=14), st.integers(1, 6))
def test_stages_are_as_even_as_contiguous_pieces_can_be(loads: list[float], pp: int) -> None:
    if pp > len(loads):
        return
    ends = cut(tuple(loads), pp, 1, "1f1b")
    assert len(ends) == pp
    assert ends[-1] == len(loads)
    assert all(a < b for a, b in zip((0, *ends), ends, strict=False))
    got = max(sum(loads[a:b]) for a, b in zip((0, *ends), ends, strict=False))
    best = [[sum(loads[: i + 1]) for i in range(len(loads))]]
    for _ in range(1, pp):
        row = [
            min((max(best[-1][j - 1], sum(loads[j : i + 1])) for j in range(1, i + 1)), default=float("inf"))
            for i in range(len(loads))
        ]
        best.append(row)
    assert got == pytest.approx(best[pp - 1][-1], rel=1e-6)


def test_v3s_last_stages_hold_fewer_layers_since_heads_and_mtp_cost_as_much() -> None:
    ends = v3_on_h800().plan.step.ends
    sizes = [b - a for a, b in zip((0, *ends), ends, strict=False)]
    assert sum(sizes) == 1 + 61 + 1 + 1
    assert sizes[-1] < max(sizes)


def test_all_to_all_is_bounded_by_the_routers_groups() -> None:
    """V3: 8 experts of 4 of 8 groups: 3.6 nodes in the mean, 1/8 of the time the own one: 92 MB over the fabric."""
    layer = preset("v3").layers[-1].ffn
    assert isinstance(layer, MoE)
    found = expert_exchange(layer, 7168, find_chip("h800"), 64, 4096, 1.0)
    assert found.far_s == pytest.approx(4096 * 7168 * distinct(4, 8) * 7 / 8 / 50e9)
    inside = expert_exchange(layer, 7168, find_chip("h800"), 8, 4096, 1.0)
    assert inside.far_s == 0
    assert inside.near_s > 0


def test_a_package_of_two_dies_is_two_ranks() -> None:
    layout = {"tp": 4, "ep": 128, "zero": 3}
    dies = predict_training("v3", "ascend-910c-die", 128, layout=layout, batch=1024, isl=4096)
    packages = predict_training("v3", "ascend-910c", 64, layout=layout, batch=1024, isl=4096)
    assert packages.value("step_s") == pytest.approx(dies.value("step_s"))
    assert packages.value("tokens_per_s_per_chip") == pytest.approx(2 * dies.value("tokens_per_s_per_chip"))
    assert packages.value("mfu") == pytest.approx(dies.value("mfu"))
    approximate = predict_training("v3", "ascend-910c", 64, layout={"tp": 4, "dp": 16, "ep": 64, "zero": 3}, batch=1024)
    assert any("one rank per package" in note for note in approximate.notes)


def test_a_layout_that_does_not_fit_says_by_how_many_bytes() -> None:
    with pytest.raises(OutOfMemory, match=r"needs [\d.]+ [TG]B on each h800 .*[\d.]+ [TG]B more than the 80 GB"):
        predict_training("v4-pro", "h800", 64, layout={"tp": 8, "ep": 8, "pp": 8}, batch=64, isl=4096)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tp": 3}, "does not divide 2048 ranks"),
        ({"pp": 16, "ep": 48}, "ep = 48 does not divide the 128 ranks"),
        ({"pp": 16, "ep": 3, "tp": 2, "dp": 64}, "ep = 3 does not divide the 128 ranks"),
        ({"pp": 64, "virtual": 2}, "128 stages"),
        ({"pp": 16, "dp": 128, "tp": 2}, "4,096 ranks"),
        ({"pp": 1, "dp": 2048, "micro_batch": 8, "ep": 64}, "the global batch has 15,360"),
        ({"pp": 16, "depth": 2}, "'depth' is no part"),
        ({"pp": 0, "dp": 128}, "pp is 0"),
        ({"pp": 16, "virtual": 2, "schedule": "1f1b"}, "needs schedule interleaved"),
    ],
)
def test_an_illegal_layout_is_an_error_with_numbers(layout: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict_training("v3", "h800", 2048, layout=layout, batch=15360, isl=4096)


def test_bad_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not multiply in fp8"):
        job("v3", "ascend-910c", 1024, precision="fp8")
    with pytest.raises(ConfigError, match="nobody trains"):
        job("v3", "ascend-910c", 1024, precision="int8")
    with pytest.raises(ConfigError, match="tokens is -1"):
        job("v3", "h800", 1024, tokens=-1.0)
    with pytest.raises(ConfigError, match=r"known are .*megatron"):
        predict_training("v3", "h800", 2048, layout={"pp": 16, "ep": 64}, stack="nosuch")
    with pytest.raises(ConfigError, match="DualPipe over pp 16 needs 32"):
        predict_training("v3", "h800", 2048, layout={"pp": 16, "ep": 64, "schedule": "dualpipe"}, batch=1280)
    with pytest.raises(ConfigError, match="into 4 pieces; 4095"):
        check_layout(preset("v3"), read_layout({"cp": 2}, 8), 4095)
