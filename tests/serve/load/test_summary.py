"""Percentiles by hand, comparisons, and the command as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from tiefsee.errors import ConfigError
from tiefsee.serve.load.compare import compare
from tiefsee.serve.load.record import Record
from tiefsee.serve.load.report import read_json
from tiefsee.serve.load.summary import Slo, percentile, spread


def test_percentiles_by_hand():
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([1, 2, 3, 4], 0) == 1
    assert percentile([1, 2, 3, 4], 100) == 4
    assert percentile([7.0], 99) == 7
    assert percentile(list(range(101)), 99) == 99
    assert spread([3, None, 1, 2]) == {"mean": 2, "p50": 2, "p90": 2.8, "p95": 2.9, "p99": 2.98, "max": 3, "count": 3}
    assert spread([None]) is None


def record(**fields):
    return Record(0, 1.0, sent_s=1.2, end_s=5.0, outcome="ok", **fields)


def test_times_count_from_the_arrival():
    found = record(num_output_tokens=5, chunk_s=[2.0, 2.5, 4.0], chunk_tokens=[1, 1, 3])
    assert (found.ttft_s, found.e2e_s) == (1.0, 4.0)
    assert found.tpot_s == 0.5
    assert found.itl_s() == [0.5, 0.5, 0.5, 0.5]
    assert record(num_output_tokens=1, chunk_s=[2.0]).tpot_s is None


def test_an_slo():
    slo = Slo.parse("ttft=1,tpot=0.4")
    assert slo.holds(record(num_output_tokens=1, chunk_s=[2.0]))
    assert not slo.holds(record(num_output_tokens=5, chunk_s=[2.0, 4.0]))
    assert not slo.holds(record(num_output_tokens=5, chunk_s=[2.1, 2.2]))
    for wrong in ("ttft", "ttft=x", "itl=1", "ttft=0", "ttft=inf"):
        with pytest.raises(ConfigError, match="--slo"):
            Slo.parse(wrong)


def test_a_comparison_says_which_is_better():
    def runs(tokens, ttft):
        return {"runs": [{"load": {"label": "a"}, "output_tokens_per_s": tokens, "ttft_s": {"p50": ttft}}]}

    rows = {row["figure"]: row for row in compare(runs(100, 1.0), runs(150, 1.005))}
    assert rows["output tokens/s"]["ratio"] == 1.5
    assert rows["output tokens/s"]["better"] == "second"
    assert rows["TTFT P50 ms"]["better"] == ""
    assert "TPOT P50 ms" not in rows
    with pytest.raises(ConfigError, match="share no load"):
        compare(runs(1, 1), {"runs": [{"load": {"label": "b"}}]})


# ------------------------------------------------------------------------------- the command


def bench(*arguments):
    return [sys.executable, "-m", "tiefsee", "bench", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(bench(*arguments), capture_output=True, text=True, timeout=60)


def test_a_sweep_over_tiefsee_itself(url, tmp_path):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    done = run(
        "serve", "--url", url, "--isl", 300, "--osl", 12, "--ignore-eos", "--concurrency", "2,1", "--num-requests", 6,
        "--slo", "ttft=30,tpot=5", "--json", out, "--records", "--plot", picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 at once" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = read_json(out)
    assert [item["load"]["concurrency"] for item in found["runs"]] == [1, 2]
    for item in found["runs"]:
        assert item["requests"] == {"sent": 6, "ok": 6}
        assert item["slo_attainment"] == 1.0
        assert item["output_tokens"]["p50"] == 12
        assert 290 <= item["prompt_tokens"]["p50"] <= 310
        assert item["chunks_counted"] == 6
        assert len(item["records"]) == 6
    compared = run("compare", out, out, "--json")
    assert all(row["ratio"] == 1 for row in json.loads(compared.stdout))


def test_a_sweep_ends_where_the_slo_breaks(url):
    done = run(
        "serve", "--url", url, "--isl", 40, "--osl", 4, "--endpoint", "completions", "--rate", "20,30,40",
        "--num-requests", 4, "--slo", "ttft=0.000001",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the sweep ends here" in done.stderr
    assert "30/s" not in done.stdout


def test_ctrl_c_reports_what_was_measured(url, tmp_path):
    out = tmp_path / "out.json"
    command = bench(
        "serve", "--url", url, "--isl", 40, "--osl", 400, "--ignore-eos", "--duration", 60, "--json", out, "--warmup", 0
    )
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    process.stderr.readline()  # it has begun
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in output
    assert "Traceback" not in errors
    (found,) = read_json(out)["runs"]
    assert found["interrupted"]
    assert found["requests"]["cancelled"] >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:9"], "cannot be reached"),
        (["--url", "127.0.0.1:9"], "--url"),
        (["--rate", "1", "--concurrency", "1"], "one way"),
        (["--rate", "0"], "--rate"),
        (["--isl", "uniform:3"], "--isl"),
        (["--trace", "/no/such"], "cannot be read"),
        (["--json", "/no/such/folder/x.json"], "no folder"),
        (["--plot", "x.bmp"], "--plot"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["--extra-body", "[1]"], "--extra-body"),
        (["--num-requests", "0"], "--num-requests"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, words):
    done = run("serve", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_torch_is_loaded():
    code = "import sys; sys.modules['torch'] = None; import tiefsee.cli.bench, tiefsee.serve.load.run"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("text", "words"), [("{", "no JSON"), ("{}", "schema"), ("[]", "schema")])
def test_files_that_are_none_of_ours(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_json(tmp_path / "x.json")
