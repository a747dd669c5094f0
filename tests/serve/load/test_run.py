"""Measured against a server whose pace is known: are the figures those of the server?"""

from __future__ import annotations

import asyncio
from statistics import median

import pytest

from tests.serve.load.paced import Paced
from tiefsee.serve.load.arrivals import Arrivals
from tiefsee.serve.load.client import Target, TargetError
from tiefsee.serve.load.lengths import Lengths
from tiefsee.serve.load.plan import Form, Workload, plan
from tiefsee.serve.load.prompts import Sizer
from tiefsee.serve.load.run import Extent, drive
from tiefsee.serve.load.summary import Slo, summarise


def measured(
    server, arrivals, *, num=None, duration=None, osl="20", slo="", endpoint="chat", retry=False, timeout=20.0
):
    """The run and its summary."""

    async def work():
        async with server, Target(server.url, server.key or None, timeout, retry=retry) as target:
            form = Form(endpoint, await target.model(None))
            workload = Workload(Lengths.parse("50", "--isl"), Lengths.parse(osl, "--osl"))
            run = await drive(target, arrivals, plan(workload, arrivals, form, Sizer()), Extent(num, duration))
            return run, summarise(run, Slo.parse(slo))

    return asyncio.run(work())


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("per_chunk", [1, 4])
def test_the_pace_of_the_server(endpoint, per_chunk):
    server = Paced(ttft_s=0.1, tpot_s=0.01, per_chunk=per_chunk)
    _, summary = measured(server, Arrivals("closed", concurrency=4), num=12, osl="41", endpoint=endpoint)
    assert summary["requests"] == {"sent": 12, "ok": 12}
    assert summary["output_tokens"]["p50"] == 41
    assert 0.1 <= summary["ttft_s"]["p50"] < 0.14
    expected = 0.01 * 40 / 40 if per_chunk == 1 else 0.01 * (41 - 4) / 40  # the first chunk's tokens come at once
    assert expected <= summary["tpot_s"]["p50"] < expected * 1.5
    assert 0.01 <= summary["itl_s"]["mean"] < 0.015
    assert summary["itl_s"]["count"] == 12 * (41 - per_chunk)
    assert summary["chunks_counted"] == 12


def test_chunks_that_are_not_counted_share_the_tokens():
    run, summary = measured(Paced(per_chunk=5, counts=False), Arrivals("closed", concurrency=1), num=2, osl="25")
    assert summary["chunks_counted"] == 0
    assert summary["output_tokens"]["p50"] == 25
    assert len(run.records[0].itl_s()) == 20
    assert 0.01 <= summary["itl_s"]["mean"] < 0.02


def test_a_stall_is_seen_by_those_who_should_have_been_sent_in_it():
    """Coordinated omission: an open loop goes on sending, and time counts from when a request was due."""
    server = Paced(ttft_s=0.01, tpot_s=0.001, stalls=(0.5, 1.5))
    run, summary = measured(server, Arrivals("even", rate_per_s=20), duration=2.0, osl="5")
    assert summary["requests"]["sent"] == 40
    late = [r for r in run.records if r.ttft_s > 0.1]
    assert 15 <= len(late) <= 21  # those of the second that the server stood still
    assert 0.35 < median(r.ttft_s for r in late) < 0.65
    assert summary["ttft_s"]["p99"] > 0.8


def test_a_retry_counts_from_the_first_arrival():
    server = Paced(ttft_s=0.01, tpot_s=0.001, wrong="busy")
    run, summary = measured(server, Arrivals("closed", concurrency=1), num=4, osl="3", retry=True)
    assert summary["requests"] == {"sent": 4, "ok": 4}
    assert summary["retries"] == 3
    assert [r.ttft_s > 0.1 for r in run.records] == [False, True, True, True]


@pytest.mark.parametrize(
    ("wrong", "outcome", "words"),
    [
        ("no_done", "truncated", "[DONE]"), ("no_finish", "truncated", "finish_reason"), ("cut", "truncated", ""),
        ("error_event", "failed", "the engine died"), ("busy", "refused", "busy"), ("status_500", "failed", "broken"),
        ("not_json", "failed", "not a stream"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_counted_by_kind(wrong, outcome, words):
    _, summary = measured(Paced(0.001, 0.001, wrong=wrong), Arrivals("closed", concurrency=1), num=6, slo="ttft=5")
    assert summary["requests"] == {"sent": 6, "ok": 3, outcome: 3}
    assert summary["slo_attainment"] == 0.5
    assert sum(summary["errors"].values()) == 3
    assert all(words in error for error in summary["errors"])
    assert summary["ttft_s"]["count"] == 3  # the figures are of whole answers only


def test_a_request_that_takes_too_long():
    _, summary = measured(Paced(ttft_s=1), Arrivals("burst"), num=3, timeout=0.2)
    assert summary["requests"] == {"sent": 3, "ok": 0, "timeout": 3}
    assert summary["ttft_s"] is None


def test_goodput_counts_requests_within_every_limit():
    server = Paced(ttft_s=0.02, tpot_s=0.02)
    _, summary = measured(server, Arrivals("burst"), num=10, osl="uniform:2:30", slo="ttft=0.5,tpot=0.05,e2e=0.3")
    expected = summary["slo_attainment"] * 10
    assert 1 <= expected <= 9  # e2e is the one that breaks: about 14 tokens fit
    assert summary["goodput_requests_per_s"] == pytest.approx(expected / summary["wall_s"])


def test_a_burst_is_sent_at_once_and_the_client_says_how_it_was():
    _, summary = measured(Paced(ttft_s=0.3), Arrivals("burst"), num=100, osl="2")
    assert summary["requests"]["ok"] == 100
    assert summary["wall_s"] < 2.0
    assert 0 < summary["client"]["cpu_share"] < 2
    assert summary["client"]["late_s"]["max"] < 0.5


def test_calibration_finds_the_servers_tokens():
    async def work():
        async with Paced(0.001) as server, Target(server.url) as target:
            form = Form("chat", "paced")
            sizer = await target.calibrate(form, 0)
            assert sizer.tokens_per_word == pytest.approx(1.5, abs=0.01)
            assert sizer.overhead == pytest.approx(10, abs=1)
            workload = Workload(Lengths.parse("300", "--isl"), Lengths.parse("2", "--osl"))
            arrivals = Arrivals("closed", concurrency=2)
            return await drive(target, arrivals, plan(workload, arrivals, form, sizer), Extent(6))

    assert [r.num_prompt_tokens for r in asyncio.run(work()).records] == pytest.approx([300] * 6, abs=2)


@pytest.mark.parametrize(("key", "asked", "words"), [("secret", None, "--api-key-env"), ("", "other", "paced")])
def test_a_server_that_will_not(key, asked, words):
    async def work():
        async with Paced(key=key) as server, Target(server.url) as target:
            with pytest.raises(TargetError, match=words):
                await target.model(asked)

    asyncio.run(work())


def test_a_server_that_counts_nothing_cannot_be_calibrated():
    async def work():
        async with Paced(0.001, counts=False, usage=False) as server, Target(server.url) as target:
            with pytest.raises(TargetError, match="--tokenizer"):
                await target.calibrate(Form("chat", "paced"), 0)

    asyncio.run(work())
