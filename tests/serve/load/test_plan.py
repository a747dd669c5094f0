"""What is decided before the first byte: times, lengths, texts, traces."""

from __future__ import annotations

import itertools
import json
import random
from statistics import mean, median, pstdev

import pytest

from tiefsee.errors import ConfigError
from tiefsee.serve.load.arrivals import Arrivals
from tiefsee.serve.load.lengths import Lengths
from tiefsee.serve.load.plan import Form, Workload, plan
from tiefsee.serve.load.prompts import Prompts, Sizer
from tiefsee.serve.load.trace import read_trace

FORM = Form("chat", "m")


def first(number, workload, arrivals=Arrivals("closed", concurrency=1), sizer=Sizer(), **more):  # noqa: B008
    return list(itertools.islice(plan(workload, arrivals, FORM, sizer, **more), number))


def workload(isl="100", osl="10", **more):
    return Workload(Lengths.parse(isl, "--isl"), Lengths.parse(osl, "--osl"), **more)


def test_poisson_gaps_have_the_rate_and_the_spread_of_an_exponential():
    times = list(itertools.islice(Arrivals("poisson", rate_per_s=5).times_s(seed=1), 4001))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert mean(gaps) == pytest.approx(0.2, rel=0.06)
    assert pstdev(gaps) == pytest.approx(0.2, rel=0.1)  # of an exponential it is the mean
    assert median(gaps) == pytest.approx(0.2 * 0.693, rel=0.1)


def test_even_and_burst():
    assert list(itertools.islice(Arrivals("even", rate_per_s=4).times_s(0), 3)) == [0, 0.25, 0.5]
    assert list(itertools.islice(Arrivals("burst").times_s(0), 3)) == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "middle", "low", "high"),
    [("64", 64, 64, 64), ("uniform:10:30", 20, 10, 30), ("lognormal:100:0.5", 100, 1, 2000)],
)  # fmt: skip
def test_lengths(text, middle, low, high):
    lengths, chance = Lengths.parse(text, "--isl"), random.Random(0)
    drawn = [lengths.draw(chance) for _ in range(2000)]
    assert median(drawn) == pytest.approx(middle, rel=0.06)
    assert low <= min(drawn) <= max(drawn) <= high
    assert str(lengths) == text


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "uniform:5", "uniform:9:3", "normal:1:1", "64:2", "nan", "uniform:1:inf"]
)
def test_lengths_that_mean_nothing(text):
    with pytest.raises(ConfigError, match="--isl"):
        Lengths.parse(text, "--isl")


def test_the_same_seed_gives_the_same_requests_and_another_gives_others():
    one, same, other = (first(5, workload("uniform:20:60", seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert all(a.body != b.body for a, b in zip(one, other, strict=True))


def test_prompts_share_what_they_were_asked_to_and_no_more():
    found = first(40, workload("60", prefix_tokens=26, prefix_groups=2))
    words = [item.body["messages"][0]["content"].split() for item in found]
    groups = {tuple(item[:20]) for item in words}
    assert len(groups) == 2
    assert len({tuple(item[20:24]) for item in words}) == 40
    assert len({tuple(w.body["messages"][0]["content"].split()[:3]) for w in first(40, workload("60"))}) == 40


def test_a_tokenizer_sizes_prompts_exactly():
    sizer = Sizer(2.0, 0.0, "", lambda text: sum(1 + len(word) // 3 for word in text.split()))
    for wanted in (5, 40, 400):
        assert abs(sizer.count(Prompts(sizer, 0).piece("a", wanted)) - wanted) <= 2


def test_a_trace_of_ours(tmp_path):
    rows = [{"arrival_s": 1.5, "prompt": "later", "max_tokens": 7}, {"arrival_s": 0, "prompt_tokens": 30}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = first(9, workload(trace=tuple(read_trace(tmp_path / "t.jsonl"))), Arrivals("trace"))
    assert [item.arrival_s for item in found] == [0, 1.5]
    assert found[1].body["messages"][0]["content"] == "later"
    assert found[1].body["max_tokens"] == 7
    assert len(found[0].body["messages"][0]["content"].split()) == 23  # 30 tokens at 1.3 a word


def test_a_trace_of_mooncake_shares_its_blocks(tmp_path):
    rows = [
        {"timestamp": 500, "input_length": 1100, "output_length": 9, "hash_ids": [1, 2, 3]},
        {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 9]},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = first(9, workload(trace=tuple(read_trace(tmp_path / "t.jsonl"))), Arrivals("trace"))
    assert [item.arrival_s for item in found] == [0, 0.5]
    a, b = (item.body["messages"][0]["content"].split() for item in found)
    assert a[:390] == b[:390]  # 512 tokens
    assert a[394:400] != b[394:400]
    assert [len(a) * 1.3, len(b) * 1.3] == pytest.approx([600, 1100], rel=0.01)


def test_a_file_of_sharegpt(tmp_path):
    turns = [{"from": "human", "value": "How high?"}, {"from": "gpt", "value": "So high as that " * 5}]
    (tmp_path / "t.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    (line,) = read_trace(tmp_path / "t.json")
    assert (line.prompt, line.max_tokens, line.arrival_s) == ("How high?", 26, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no requests"), ("{", "line 1"), ('{"prompt": "a"}\n{"x": 1}', "line 2"), ('{"prompt": 3}', "line 1"),
        ('{"prompt_tokens": 0}', "line 1"), ('{"input_length": 5}', "output_length"),
        ('{"arrival_s": 1, "prompt": "a"}\n{"prompt": "b"}', "all or none"),
        ('{"arrival_s": -1, "prompt": "a"}', "line 1"),
    ],
)  # fmt: skip
def test_a_trace_that_means_nothing(tmp_path, text, words):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_trace(tmp_path / "t.jsonl")
