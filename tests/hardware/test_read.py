"""A user's own chip: read, written back, or refused in one clear sentence. Nothing but ConfigError, whatever it is."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiefsee.errors import ConfigError
from tiefsee.hardware import chip_names, chip_toml, find_chip, load_chips, read_chips

OWN = """
name = "mychip"
available = "2026"
memory = { value = "96 GB", kind = "vendor", source = "sheet" }
memory_bandwidth = { value = "2.4 TB/s", kind = "estimate", low = "2 TB/s", high = "2.6 TB/s", source = "a talk" }
bf16 = { value = "400 TFLOP/s", kind = "vendor", source = "sheet" }
[[links]]
tier = "node"
num_chips = 8
bandwidth = { value = "200 GB/s", kind = "vendor", source = "sheet" }
"""
FABRIC = """
[[links]]
tier = "fabric"
bandwidth = { value = "25 GB/s", kind = "vendor", source = "sheet" }
"""
SUPERNODE = FABRIC.replace('"fabric"', '"supernode"\nnum_chips = 4')


@pytest.mark.parametrize("name", chip_names())
def test_what_is_written_is_read_back(name):
    chip = find_chip(name)
    (again,) = read_chips(chip_toml(chip), "here")
    for one, other in zip(figures(chip), figures(again), strict=True):
        assert (one.unit, one.kind, one.source, one.note) == (other.unit, other.kind, other.source, other.note)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), rel=1e-5)
    for field in ("name", "title", "vendor", "per", "dies", "aliases", "chips_per_node", "available", "notes"):
        assert getattr(chip, field) == getattr(again, field)
    assert [(x.tier, x.name, x.num_chips) for x in chip.links] == [(x.tier, x.name, x.num_chips) for x in again.links]


def figures(chip):
    found = [*chip.flops_per_s.values(), chip.memory_bytes, chip.memory_bytes_per_s]
    found += [f for f in (chip.tdp_w, chip.usd_per_hour, chip.purchase_usd, chip.launch_s) if f is not None]
    return found + [f for link in chip.links for f in (link.bytes_per_s, link.latency_s)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"96 GB"', "96", "without a unit"),
        ('"96 GB"', '"96"', "it has no unit"),
        ('"96 GB"', '"96 G"', "it has no unit"),
        ('"96 GB"', '"96 GB/s"', "cannot read '96 GB/s'"),
        ('"96 GB"', '"96 TFLOP/s"', "cannot read '96 TFLOP/s' as bytes"),
        ('"96 GB"', '"96 bananas"', "its unit is 'bananas'"),
        ('"96 GB"', '"0 GB"', "absurd or not above 0"),
        ('"96 GB"', '"-96 GB"', "absurd or not above 0"),
        ('"96 GB"', '"96 B"', "absurd or not above 0"),
        ('"96 GB"', '"1e308 EB"', "absurd"),
        ('"96 GB"', '"inf GB"', "does not start with a number"),
        ('"96 GB"', '"nan GB"', "does not start with a number"),
        ('"96 GB"', "inf", "without a unit"),
        ('"96 GB"', "true", "found True"),
        ('"400 TFLOP/s"', '"400 TFLOPS"', "cannot read"),
        (', source = "sheet" }\nmemory_', " }\nmemory_", "memory: no source"),
        (', source = "sheet" }\nmemory_', ', source = "" }\nmemory_', "memory: no source"),
        (', source = "sheet" }\nmemory_', ", source = 3 }\nmemory_", "source is 3; needed is a text"),
        (', kind = "vendor", source = "sheet" }\nmemory_', ', source = "sheet" }\nmemory_', "memory: no kind"),
        ('{ value = "96 GB", ', "{ ", "memory: no value"),
        ('low = "2 TB/s", high = "2.6 TB/s", ', "", "needs low and high"),
        ('"2 TB/s"', '"2.5 TB/s"', "not between low and high"),
        ('"2.6 TB/s"', '"2.3 TB/s"', "not between low and high"),
        ('kind = "vendor"', 'kind = "rumour"', "kind is 'rumour'"),
        ('kind = "vendor"', 'kid = "vendor"', "is kind meant"),
        ("bf16", "bf17", "is bf16 meant"),
        ('tier = "node"', 'tier = "rack"', "a link's tier is 'rack'"),
        ('tier = "node"', "tier = [1]", "a link's tier"),
        ("num_chips = 8", "num_chips = 0", "num_chips is 0"),
        ("num_chips = 8", "num_chips = 1000000000", "from 1 to 10,000,000"),
        ("num_chips = 8", "num_chips = true", "num_chips is True"),
        ("num_chips = 8", 'num_chips = "8"', "num_chips is 8; needed is a whole number"),
        ("num_chips = 8", "num_chip = 8", "is num_chips meant"),
        ("name = ", "nam = ", "has no name"),
        ('name = "mychip"', 'name = "my:chip"', "a chip's name is 'my:chip'"),
        ('available = "2026"', 'available = "soon"', "available is 'soon'"),
        ('available = "2026"', "available = 2026", "available is 2026"),
        ('available = "2026"', 'per = "rack"', "per is 'rack'"),
        ('available = "2026"', "dies = 0", "dies is 0"),
        ('available = "2026"', "chips_per_node = -8", "chips_per_node is -8"),
        ('available = "2026"', "aliases = 3", "aliases is 3"),
        ('available = "2026"', "notes = [1]", "notes is"),
        ('available = "2026"', 'tdp = { value = inf, kind = "vendor", source = "x" }', "absurd"),
        ('available = "2026"', 'tdp = { value = nan, kind = "vendor", source = "x" }', "absurd"),
        ('available = "2026"', 'tdp = { value = "400 W", kind = "vendor", source = "x" }', "needed is a number of W"),
        ('available = "2026"', 'rent = { value = true, kind = "vendor", source = "x" }', "found True"),
        ('available = "2026"', 'rent = { value = 0, kind = "vendor", source = "x" }', "not above 0"),
        ('available = "2026"', "sources = { a = 3 }", "sources"),
        ('available = "2026"', "chip = 3", "is no field of a file"),
        ("memory = {", "memory = 3 # {", "found 3; needed is"),
        ("[[links]]", "[links]", "needed is at least one"),
        ("= {", "= [", "is no TOML"),
        (OWN, "", "has no name"),
        (OWN, "chip = [1]", "is no list of tables"),
    ],
)
def test_a_chip_that_is_described_badly(tmp_path, old, new, words):
    (tmp_path / "own.toml").write_text(OWN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words) as found:
        load_chips(tmp_path / "own.toml")
    assert "own.toml" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OWN + OWN[OWN.index("[[links]]") :], "'node' is there twice"),
        (OWN.replace('"node"', '"fabric"') + SUPERNODE, "fabric comes before supernode"),
        (OWN + SUPERNODE, "supernode joins fewer chips than node"),
        (OWN.replace("num_chips = 8", "") + FABRIC, "joins any number"),
        (f"[[chip]]{OWN.replace('[[', '[[chip.')}" * 2, "describes a chip twice: mychip"),
        (OWN[: OWN.index("[[links]]")], "links is missing"),
        ("memory = 1\nmemory = 2", "is no TOML"),
        (f"n = {'9' * 5000}", "is no TOML"),
    ],
)
def test_chips_that_do_not_hang_together(text, words):
    with pytest.raises(ConfigError, match=words):
        read_chips(text, "own.toml")


def test_files_that_are_none(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe name")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "bytes.toml", Path("a\0.toml")):
        with pytest.raises(ConfigError):
            load_chips(path)
    two = f"[[chip]]{OWN.replace('[[', '[[chip.')}"
    (tmp_path / "two.toml").write_text(two + two.replace("mychip", "other"))
    assert [chip.name for chip in load_chips(tmp_path / "two.toml")] == ["mychip", "other"]
    with pytest.raises(ConfigError, match="describes 2 chips"):
        find_chip(str(tmp_path / "two.toml"))


# Values of any kind where others belong, written as TOML; some of them are quite right.
SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["96 GB", "1e999 GB", "3 TB/s", "-2 TFLOP/s", "5", "GB", "1 us", "die", "vendor", "estimate"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
FIGURE = {"value": "96 GB", "kind": "vendor", "source": "sheet"}
WHOLE = {
    "name": "mychip", "per": "card", "dies": 1, "available": "2026", "aliases": [], "notes": [], "chips_per_node": 8,
    "memory": FIGURE, "memory_bandwidth": {**FIGURE, "value": "2 TB/s"}, "bf16": {**FIGURE, "value": "4 TFLOP/s"},
    "tdp": {**FIGURE, "value": 400}, "rent": {**FIGURE, "value": 1.5},
    "links": [{"tier": "node", "num_chips": 8, "bandwidth": {**FIGURE, "value": "200 GB/s"}},
              {"tier": "fabric", "bandwidth": {**FIGURE, "value": "25 GB/s"}}],
}  # fmt: skip


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def toml(value):
    """A value as inline TOML: enough of a writer to spoil tables with."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() or c in " ./-" else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def spoiled(changes):
    table = copy.deepcopy(WHOLE)
    for path, value in changes:
        inner = table
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change has taken the place away
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items())


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([p for p in places(WHOLE) if p]), VALUES), min_size=1, max_size=3))
@example([])
def test_spoiled_tables_are_chips_or_config_errors(changes):
    text = spoiled(changes)
    try:
        (chip,) = read_chips(text, "own.toml")
    except ConfigError:
        assert changes  # nothing changed is a chip
        return
    for figure in figures(chip):
        assert 0 < figure.low <= figure.value <= figure.high < math.inf


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_config_error(text):
    with pytest.raises(ConfigError):
        read_chips(text, "own.toml")


def test_the_chip_in_the_docs_is_read():
    text = (Path(__file__).parents[2] / "docs" / "chips.md").read_text(encoding="utf-8")
    (chip,) = read_chips(text.split("```toml\n")[1].split("```")[0], "docs/chips.md")
    assert (chip.name, len(chip.links), chip.memory_bytes_per_s.high) == ("mychip", 2, 2.6e12)
