"""A document as JSON, HTML, PNG and in a terminal: nothing lost, nothing fetched, nothing trusted."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.plan.report import examples
from tiefsee.errors import ConfigError
from tiefsee.plan.report import Document, NamedEstimate, Table, as_json
from tiefsee.plan.report.cells import texts_of
from tiefsee.plan.report.draw import caption, draw
from tiefsee.plan.report.html import PHONE, WIDE, page
from tiefsee.plan.report.palette import DARK, LIGHT
from tiefsee.plan.report.png import COLUMN, PIXELS, layout, write_png
from tiefsee.plan.report.scene import Label, Mark, Path, text_width
from tiefsee.plan.report.tables import as_table
from tiefsee.plan.report.terminal import console_of, print_document

ALL = [*examples.charts(), *examples.degenerate()]


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_json_has_base_units_and_no_nan():
    found = json.loads(json.dumps(as_json(examples.document()), allow_nan=False))
    assert found["schema"] == "tiefsee.plan/1"
    throughput = found["figures"]["throughput"]
    assert throughput["value"] == 1903.0
    assert throughput["unit"] == "tokens_per_s_per_chip"
    assert throughput["low"] < 1903 < throughput["high"]
    assert throughput["grade"] == "fitted"
    assert found["tables"][0]["rows"][0]["tpot"]["value"] == 0.0094
    assert found["tables"][0]["rows"][1]["tpot"] is None
    assert [c["kind"] for c in found["charts"]] == [
        "frontier",
        "scaling",
        "roofline",
        "timebars",
        "rangebars",
        "tornado",
    ]
    assert found["charts"][0]["lines"][0]["points"][0]["throughput"]["value"] == 400
    assert found["data"]["deep"][1] is None  # infinity


def test_an_unlisted_source_and_a_short_row_are_refused():
    figure = NamedEstimate("a", "A", examples.tpot(0.01), ("nowhere",))
    with pytest.raises(ConfigError, match=r"'A' rests on source 'nowhere'.*none"):
        Document("t", "q", "a", "fitted", "b", figures=(figure,))
    with pytest.raises(ConfigError, match="2 cells; needed are 1"):
        Table("t", (examples.Column("a", "A"),), (("x", "y"),))


# -- HTML --------------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks that elements nest, and collects tags, attributes and text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.texts.append(data)


def test_page_is_well_formed_and_fetches_nothing():
    text = page(examples.document(examples.degenerate()))
    reader = Reader(text)
    names = {tag for tag, _ in reader.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "image", "use", "base", "form"})
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "xlink:href")
            assert not name.startswith("on")
            assert name != "href" or (value or "").startswith("#source-")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|//", style[1])
    assert "default-src 'none'" in text


def test_page_escapes_what_it_is_given():
    text = page(examples.document())
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10  # title, question, notes, sources, cells, charts, tips
    assert 'alert("1")' not in text


def test_footnotes_lead_to_sources():
    reader = Reader(page(examples.document()))
    ids = {a["id"] for _, a in reader.tags if "id" in a}
    links = {a["href"] for tag, a in reader.tags if tag == "a"}
    assert links
    assert {link.removeprefix("#") for link in links if link} <= ids


def test_ids_are_unique():
    ids = [a["id"] for _, a in Reader(page(examples.document(examples.degenerate()))).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_figure_has_its_unit_and_range():
    reader = Reader(page(examples.document()))
    shown = " ".join(reader.texts)
    assert "1,900 tokens/s per chip" in re.sub(r"\s+", " ", shown)
    assert "1,600\u00a0..\u00a02,300" in shown
    heads, rows = texts_of(examples.document().tables[0])
    assert heads[2].unit == "ms"
    assert [str(row[2]) for row in rows] == ["9.4 (7.8 .. 11)", "-", "unknown"]


@pytest.mark.parametrize("chart", ALL, ids=lambda c: f"{type(c).__name__}-{c.title[:10]}")
def test_tables_of_charts_name_units_of_all_numbers(chart):
    table = as_table(chart)
    heads, rows = texts_of(table)
    for i, column in enumerate(table.columns):
        if any(isinstance(row[i], float) or hasattr(row[i], "unit") for row in table.rows):
            assert column.unit, f"{table.title}, {column.title}"
            assert heads[i].unit
    assert len(rows) == len(table.rows)


# -- Drawings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDE, PHONE, COLUMN])
@pytest.mark.parametrize("chart", ALL, ids=lambda c: f"{type(c).__name__}-{c.title[:10]}")
def test_drawings_stay_on_their_canvas(chart, width):
    scene = draw(chart, width)
    assert scene.height > 0
    for item in scene.items:
        if isinstance(item, Label):
            wide = text_width(item.text, item.size) * 0.85  # the estimate is an upper one
            left = item.x - {"start": 0, "middle": wide / 2, "end": wide}[item.anchor]
            assert left >= -2, item
            assert left + wide <= width + 2, item
            assert 0 <= item.y <= scene.height + 1, item
        for x, y in item.points if isinstance(item, Path) else ((item.x, item.y),):
            assert -0.5 <= x <= width + 0.5, item
            assert -0.5 <= y <= scene.height + 0.5, item
    names = {getattr(i, a, "") for i in scene.items for a in ("fill", "stroke", "colour")} - {""}
    assert names <= set(LIGHT) == set(DARK)


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("chart", examples.charts(), ids=lambda c: type(c).__name__)
def test_labels_do_not_overlap(chart, width):
    boxes = []
    for item in draw(chart, width).items:
        if isinstance(item, Label):
            wide = text_width(item.text, item.size) * 0.8
            left = item.x - {"start": 0, "middle": wide / 2, "end": wide}[item.anchor]
            boxes.append((left, item.y - 0.7 * item.size, left + wide, item.y, item.text))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], (a[4], b[4])


@pytest.mark.parametrize("chart", examples.degenerate(), ids=lambda c: f"{type(c).__name__}-{c.title[:10]}")
def test_what_cannot_be_drawn_says_so(chart):
    words = " ".join(i.text for i in draw(chart, WIDE).items if isinstance(i, Label))
    if chart.title in ("none",) or (
        chart.title == "nan" and type(chart).__name__ in ("Scaling", "Roofline", "TimeBars")
    ):
        assert "Nothing to draw" in words
    if chart.title == "nan" and type(chart).__name__ == "Frontier":
        assert "1 point without a finite value is left out." in caption(chart)
    if chart.title == "unknown":
        assert "unknown" in words


def test_band_contains_its_curve():
    """The shaded area reaches from every low to every high end."""
    scene = draw(examples.frontier(), WIDE)
    band = next(i for i in scene.items if isinstance(i, Path) and i.fill == "c0" and i.opacity < 1)
    marks = [i for i in scene.items if isinstance(i, Mark) and i.fill == "c0" and i.tip]
    assert min(y for _, y in band.points) < min(m.y for m in marks)
    assert max(x for x, _ in band.points) > max(m.x for m in marks)


@pytest.mark.parametrize("table", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_read(table):
    """WCAG 2.2: text on the surface and the surface's colour on every series, 4.5 to 1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance(table["surface"])
    for name in ("ink", "quiet", "accent", "warn", *(f"c{i}" for i in range(8))):
        high, low = sorted((ground, luminance(table[name])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


# -- PNG ---------------------------------------------------------------------------------------------------------------


def test_png_has_its_size_and_is_not_empty(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    document = examples.document()
    scene = layout(document)
    write_png(tmp_path / "a.png", document)
    data = (tmp_path / "a.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == pytest.approx((scene.width * PIXELS, scene.height * PIXELS), abs=2)
    pixels = image.imread(tmp_path / "a.png")[:, :, :3]
    dark = (pixels.min(axis=2) < 0.5).mean()
    assert 0.005 < dark < 0.5


def test_png_without_matplotlib_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"tiefsee\[plot\]"):
        write_png(tmp_path / "a.png", examples.document())
    with pytest.raises(ConfigError):
        write_png(tmp_path / "a.jpg", examples.document())


# -- Terminal ----------------------------------------------------------------------------------------------------------


def printed(document: Document, width: int = 110, **options) -> str:
    out = io.StringIO()
    print_document(Console(file=out, width=width, **options), document)
    return out.getvalue()


@pytest.mark.parametrize("width", [100, 110, 120])
def test_terminal_is_plain_and_narrow_where_piped(width):
    text = printed(examples.document(examples.degenerate()), width)
    assert "\x1b" not in text
    assert all(len(line) <= width for line in text.splitlines()), max(text.splitlines(), key=len)
    assert all(line == line.rstrip() for line in text.splitlines())
    for words in ("1,900 tokens/s per chip (1,600 .. 2,300)", "bottleneck", "reading the experts", "[2] docs/plan.md",
                  "breaks even", "<script>", "prompt"):  # fmt: skip
        assert words in " ".join(text.split())


def test_no_color_is_respected(monkeypatch):
    coloured = printed(examples.document(), force_terminal=True, color_system="standard")
    assert "\x1b[33m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(examples.document(), force_terminal=True, color_system="standard")
    assert not re.search(r"\x1b\[(3[0-7]|9[0-7])m", plain)


def test_piped_console_has_a_fixed_width():
    assert console_of().width in range(40, 121)
    assert console_of(100).width == 100


def test_report_is_imported_without_rich_matplotlib_and_torch():
    heavy = ("rich", "matplotlib", "torch", "numpy")
    code = f"import sys, tiefsee.plan.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
