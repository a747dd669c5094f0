"""The measured table: what its rows mean, what is found out about them, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import re
import statistics
from collections import Counter

import pytest

from tests.plan.evidence.test_points import DOCS
from tiefsee.errors import ConfigError
from tiefsee.plan.evidence.campaigns import Sizes, configurations
from tiefsee.plan.evidence.measured import LENGTH_SHARE, parse_measured, read_measured, shipped_rows, shipped_runs
from tiefsee.plan.evidence.resolve import candidates, drafted, load_of, settled

EXPORT = {
    "id": "x", "silicon_data_source": "source_file=1.csv; silicon_concurrency=60; measured=2026-01-28T00:00:00Z",
    "backend": "trtllm", "backend_version": "0.8.1.post1", "model_path": "deepseek-ai/DeepSeek-R1",
    "system": "b300_sxm", "precision": "fp4", "mode": "disagg", "isl": "1024", "osl": "1024",
    "prefill_tp_size": "2", "prefill_moe_ep_size": "2", "decode_tp_size": "8", "decode_moe_tp_size": "4",
    "decode_moe_ep_size": "2", "silicon_ttft_ms": "400", "silicon_tpot_ms": "8.5",
}  # fmt: skip


def table(*rows: dict[str, str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted({name for row in rows for name in row}), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def only(**changes: str):
    (run,) = parse_measured(table({**EXPORT, **changes}), "mine.csv")
    return run


def test_the_package_carries_the_table_whole():
    runs = shipped_runs()
    assert len(runs) == 1277
    assert len({run.measurement for run in runs}) == 868
    assert all(run.ttft_s > 0 and run.tpot_s > 0 and run.num_chips >= 1 for run in runs)
    assert Counter(run.chip for run in runs) == {"b200": 442, "gb200": 388, "h200": 230, "b300": 134, "h100": 83}


def test_most_runs_are_known_in_layout_and_drafts():
    best = {}
    for run in sorted(shipped_runs(), key=lambda run: (len(run.assumed), run.drafts is None)):
        best.setdefault(run.measurement, run)
    assert sum(not set(run.assumed) - {"drafts"} for run in best.values()) >= 740
    assert sum(run.drafts is not None for run in best.values()) >= 775


def test_copies_of_a_measurement_say_the_same():
    copies = {}
    for run in shipped_runs():
        copies.setdefault(run.measurement, []).append(run)
    for same in copies.values():
        if any(run.source == "dump" for run in same):
            assert len({(run.decode, run.num_decode, run.prefill, run.num_prefill) for run in same}) <= 2
            assert {run.drafts for run in same} == {0}


def test_published_configurations_agree_with_the_database():
    """Rows of exports, identified without their copy in the database, against that copy."""
    whole = {row.measurement: row for row in shipped_rows() if row.source == "dump"}
    told = Counter()
    for row in shipped_rows():
        if row.source == "export" and row.measurement in whole:
            found = settled(row, candidates(row))
            if not found.assumed:
                truth = whole[row.measurement]
                told[found.num_chips == truth.num_chips and (found.decode.dp > 1) == (truth.decode.dp > 1)] += 1
    assert told[True] >= 185
    assert told[False] <= 3


def test_comparison_tells_drafts_where_they_are_known():
    distinct = {}
    for run in shipped_runs():
        if "drafts" not in run.assumed:
            distinct.setdefault(run.measurement, run)
    runs, told = list(distinct.values()), Counter()
    for run in runs:
        like = [o for o in runs if o is not run and load_of(o) == load_of(run) and o.num_decode == run.num_decode]
        if run.drafts is not None and any(other.drafts == 0 for other in like):
            told[drafted(run, [*like, run]), run.drafts > 0] += 1
    assert told[True, True] + told[False, False] >= 330
    assert told[True, False] + told[False, True] <= 1


def test_layout_and_drafts_from_the_configuration():
    slow, fast = parse_measured(table(EXPORT, {**EXPORT, "id": "y", "silicon_tpot_ms": "5.4"}), "mine.csv")
    assert (slow.prefill, slow.num_prefill) == (Sizes(1, 2, 2, 1), 1)
    assert (slow.decode, slow.num_decode, slow.drafts) == (Sizes(8, 1, 8, 1), 5, 0)
    assert (fast.decode, fast.num_decode, fast.drafts) == (Sizes(8, 1, 8, 1), 5, 3)
    assert slow.assumed == ("drafts",)  # told by the time


def test_requests_wait_for_a_slot_as_the_configurations_say():
    """With c requests for S slots each waits (c / S - 1) answers, whatever the chip: told without any fit."""
    shares = []
    for run in {run.measurement: run for run in shipped_runs() if "layout" not in run.assumed}.values():
        if run.slots and run.concurrency >= 1.2 * run.slots:
            answer_s = run.osl * LENGTH_SHARE * run.tpot_s
            shares.append(run.ttft_s / answer_s / (run.concurrency / run.slots - 1))
    assert len(shares) >= 70
    assert 1.0 < statistics.median(shares) < 1.2
    assert sum(0.9 < share < 1.5 for share in shares) > 0.7 * len(shares)


def test_slots_come_from_the_configuration_or_the_row():
    assert only().slots == 5 * 64
    own = {"silicon_data_source": "ours; silicon_concurrency=60", "decode_num_workers": "1"}
    assert (only(**own).slots, only(**own, decode_slots="48").slots) == (None, 48)


def test_a_load_that_nobody_published_is_marked():
    run = only(silicon_data_source="source_file=1.csv; silicon_concurrency=61")
    assert "decode_num_workers" in run.assumed
    assert run.drafts is None


def test_rows_of_other_origin_say_what_they_mean():
    own = {"silicon_data_source": "our bench; silicon_concurrency=60", "decode_num_workers": "5", "num_drafts": "2"}
    run = only(**own, prefill_num_workers="1", decode_moe_tp_size="1", decode_moe_ep_size="8")
    assert (run.decode, run.num_decode, run.drafts, run.assumed) == (Sizes(8, 1, 8, 1), 5, 2, ())
    assert only(silicon_data_source="ours; silicon_concurrency=60", decode_num_workers="1").drafts == 0


def test_sizes_that_were_multiplied():
    row = {**EXPORT, "mode": "agg", "tp_size": "64", "attention_dp_size": "1", "moe_tp_size": "8", "moe_ep_size": "8"}
    row |= {"silicon_data_source": "db-dump; silicon_concurrency=8"}
    (run,) = parse_measured(table(row), "mine.csv")
    assert (run.decode, run.num_chips) == (Sizes(8, 1, 8, 1), 8)


def test_configurations_are_whole():
    found = [c for ones in configurations().values() for c in ones]
    assert len(found) > 700
    assert all(c.first <= c.last and c.num_chips >= 4 for c in found)
    assert {c.drafts for c in found} == {0, 1, 2, 3}


def test_the_documented_row(tmp_path):
    example = re.findall(r"```csv\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    (tmp_path / "runs.csv.gz").write_bytes(gzip.compress(example.encode()))
    (run,) = read_measured(tmp_path / "runs.csv.gz")
    assert (run.concurrency, run.drafts, run.num_chips, run.tpot_s) == (16, 0, 8, 0.0174)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"silicon_tpot_ms": "fast"}, "line 2: could not convert"),
        ({"silicon_tpot_ms": "-1"}, "line 2: concurrency, lengths and times must be above 0"),
        ({"silicon_tpot_ms": "nan"}, "must be above 0"),
        ({"isl": "1e3"}, "line 2: invalid literal"),
        ({"mode": "both"}, "needed is agg or disagg"),
        ({"silicon_data_source": ""}, "must be above 0"),
    ],
)
def test_one_clear_error(changes, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        only(**changes)
    assert str(caught.value).startswith("mine.csv")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="lacks the columns id, backend"):
        parse_measured(b"a,b\n1,2\n", "mine.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_measured(tmp_path / "none.csv")
    (tmp_path / "plain.gz").write_bytes(b"id\n")
    with pytest.raises(ConfigError, match="is not gzipped"):
        read_measured(tmp_path / "plain.gz")
