"""The page at `/` in headless Chromium, against the real server with the bundled model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator

import pytest

from tests.serve.local import Server
from tiefsee.serve.keys import new_key, read_keys
from tiefsee.serve.page import asset

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; `apt-get install chromium` brings one")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """A function that opens a page in a fresh profile; errors on the page fail the test."""
    contexts, wrong = [], []

    def open_at(url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.set_default_timeout(20_000)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not wrong


def scripted(page, events, status=200, headers=None):
    """Answer chat requests with these events instead of the server's; returns the bodies that were sent."""
    sent = []

    def handle(route):
        sent.append(json.loads(route.request.post_data))
        if status != 200:
            body = json.dumps({"error": {"message": "too many at once", "type": "x", "param": None, "code": None}})
            route.fulfill(status=status, headers=headers or {}, content_type="application/json", body=body)
            return
        lines = [f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events]
        route.fulfill(status=200, content_type="text/event-stream", body="".join(lines))

    page.route("**/v1/chat/completions", handle)
    return sent


def delta(**change) -> dict:
    return {"choices": [{"index": 0, "delta": change, "finish_reason": None}]}


ENDED = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def until(page, expression, at_most_s=20):
    """Wait for it; playwright's own way needs `eval`, which the page's policy forbids."""
    end = time.monotonic() + at_most_s
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(30)


def say(page, text="Hello"):
    page.fill("#input", text)
    page.press("#input", "Enter")


def test_an_answer_streams_in(url, open_page):
    page = open_page(url)
    until(page, "document.querySelector('#model').textContent.includes('tiefsee-demo')")
    page.click("#panel-button")
    page.fill("#max_tokens", "40")
    page.select_option("#thinking", "off")
    say(page)
    page.wait_for_selector(".facts >> text=tokens/s")
    assert page.inner_text("#messages li:nth-child(2) .answer").strip()
    assert "40 tokens" in page.inner_text("#messages li:nth-child(2) .facts")
    until(page, "document.querySelector('#running').textContent === '0'")


def test_stop_and_gauges(url, open_page):
    page = open_page(url)
    page.click("#panel-button")
    page.fill("#max_tokens", "1500")
    page.fill("#temperature", "1.3")
    say(page)
    until(page, "document.querySelector('#running').textContent === '1'")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")
    assert page.is_enabled("#send")
    until(page, "document.querySelector('#running').textContent === '0'")


def test_reasoning_folds_when_the_answer_begins(url, open_page):
    page = open_page(url)
    scripted(page, [
        delta(reasoning_content="Let me see. "),
        delta(reasoning_content="Yes."),
        delta(content="It is **so**."),
        ENDED,
        "[DONE]",
    ])  # fmt: skip
    say(page)
    page.wait_for_selector("strong >> text=so")
    details = page.locator("details")
    assert details.get_attribute("open") is None
    assert details.locator(".text").text_content() == "Let me see. Yes."


def test_settings_are_sent_and_empty_ones_are_not(url, open_page):
    page = open_page(url)
    sent = scripted(page, [delta(content="x"), ENDED, "[DONE]"])
    page.click("#panel-button")
    page.fill("#temperature", "0.7")
    page.fill("#seed", "5")
    page.fill("#system", "Be brief.")
    page.select_option("#thinking", "on")
    page.select_option("#effort", "max")
    say(page, "One")
    page.wait_for_selector(".facts >> text=Again")
    say(page, "Two")
    until(page, "document.querySelectorAll('#messages > li').length === 4")
    until(page, "!document.querySelector('#send').disabled")
    first, second = sent
    assert (first["temperature"], first["seed"], first["thinking"], first["reasoning_effort"]) == (
        0.7, 5, {"type": "enabled"}, "max",
    )  # fmt: skip
    assert not {"top_p", "top_k", "min_p"} & set(first)
    assert first["stream_options"] == {"include_usage": True}
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]


HOSTILE = (
    "<img src=x onerror=\"window.broken=1\"> <script>window.broken=1</script> [a](javascript:window.broken=1) "
    "[good](https://example.com/x) `<b>` \n\n```html\n<svg onload=window.broken=1>\n```\n"
    "\n| a | b |\n|---|---|\n| <i>1</i> | 2 |\n"
)  # fmt: skip


def test_what_a_model_says_is_text(url, open_page):
    page = open_page(url)
    scripted(page, [delta(reasoning_content=HOSTILE), delta(content=HOSTILE), ENDED, "[DONE]"])
    say(page, HOSTILE)
    page.wait_for_selector("table")
    page.wait_for_timeout(200)
    assert page.evaluate("window.broken") is None
    assert page.locator("#messages img, #messages script, #messages svg, #messages i, #messages b").count() == 0
    assert [link.get_attribute("href") for link in page.locator("#messages a").all()] == ["https://example.com/x"]
    assert "<svg onload" in page.inner_text("pre")


def test_no_script_from_elsewhere_may_run(url, open_page):
    page = open_page(url)
    page.evaluate("""() => { const s = document.createElement('script'); s.textContent = 'window.broken = 1';
                             document.body.append(s); }""")
    assert page.evaluate("window.broken") is None
    assert "default-src 'none'" in page.request.get(url).headers["content-security-policy"]


def test_by_keyboard_alone(url, open_page):
    page = open_page(url)
    scripted(page, [delta(content="Fine."), ENDED, "[DONE]"])
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Fine.")
    assert page.evaluate("document.activeElement.id") == "input"
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"theme", "new", "panel-button", "Copy", "Again", "Edit"} <= reached
    page.focus("#panel-button")
    page.keyboard.press("Enter")
    assert page.is_visible("#panel")
    unnamed = page.evaluate("""[...document.querySelectorAll('input, textarea, select, button, meter')].filter(
        e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.id)""")
    assert not unnamed


def test_on_a_phone(url, open_page):
    page = open_page(url, viewport={"width": 320, "height": 640}, has_touch=True)
    scripted(page, [delta(content="word " * 80 + "\n\n```\n" + "x" * 300 + "\n```"), ENDED, "[DONE]"])
    say(page, "A" * 200)
    page.wait_for_selector("pre")
    page.click("#panel-button")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(url, open_page, scheme):
    """WCAG AA: a contrast of 4.5 between ink and ground, in both themes."""
    page = open_page(url, color_scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    colours = page.evaluate("""() => { const s = getComputedStyle(document.documentElement);
        const names = ['ground','surface','ink','quiet','accent','accent-ink','mine','warn','warn-ground','code'];
        return Object.fromEntries(names.map(n => [n, s.getPropertyValue('--' + n).trim()])); }""")
    pairs = [("ink", "ground"), ("ink", "surface"), ("ink", "mine"), ("ink", "code"), ("quiet", "ground")]
    pairs += [("quiet", "surface"), ("accent", "surface"), ("accent-ink", "accent"), ("warn", "warn-ground")]
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_refusals_and_broken_streams_are_told(url, open_page):
    page = open_page(url)
    scripted(page, [], status=429, headers={"retry-after": "7"})
    say(page)
    page.wait_for_selector(".failure >> text=Try again in 7 s")
    page.unroute("**/v1/chat/completions")
    scripted(page, [delta(content="half "), {"error": {"message": "the engine died"}}, "[DONE]"])
    say(page, "again")
    page.wait_for_selector(".failure >> text=the engine died")
    assert "half" in page.inner_text("#messages li:last-child .answer")
    page.unroute("**/v1/chat/completions")
    scripted(page, [delta(content="torn")])
    say(page, "once more")
    page.wait_for_selector(".failure >> text=the connection broke")


def test_edit_again_and_a_new_chat(url, open_page):
    page = open_page(url)
    sent = scripted(page, [delta(content="Fine."), ENDED, "[DONE]"])
    say(page, "First")
    page.wait_for_selector(".facts >> text=Again")
    page.click("text=Again")
    until(page, "document.querySelectorAll('#messages > li').length === 2")
    page.wait_for_selector(".facts >> text=Again")
    assert [m["content"] for m in sent[1]["messages"]] == ["First"]
    page.click("text=Edit")
    assert page.input_value("#input") == "First"
    assert page.locator("#messages > li").count() == 0
    say(page, "Second")
    page.wait_for_selector(".facts >> text=Again")
    page.click("#panel-button")
    page.check("#keep")
    page.reload()
    page.wait_for_selector("text=Second")
    page.click("#new")
    assert page.locator("#messages > li").count() == 0


@pytest.fixture
def locked(server: Server, tmp_path) -> Iterator[tuple[str, str]]:
    key, lines = new_key("page")
    (tmp_path / "keys.toml").write_text(lines)
    with server.door(server.app(keys=read_keys(tmp_path / "keys.toml"))) as address:
        yield address, key


def test_a_key_is_asked_for(locked, open_page):
    address, key = locked
    page = open_page(address)
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "wrong-key-wrong-key")
    page.press("#key", "Enter")
    page.wait_for_selector("text=That key is not known here")
    page.fill("#key", key)
    page.press("#key", "Enter")
    until(page, "document.querySelector('#model').textContent.includes('tiefsee-demo')")
    assert key not in page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")


def test_a_base_model_continues_text(server, open_page):
    with server.door(server.app(None)) as address:
        page = open_page(address)
        page.wait_for_selector("text=This is a base model")
        page.click("#panel-button")
        page.fill("#max_tokens", "10")
        assert not page.is_visible("#thinking")
        say(page, "Once upon a time")
        page.wait_for_selector(".facts >> text=10 tokens")
        assert page.inner_text("#messages li:last-child .answer").strip()
        page.context.close()


def test_ten_thousand_pieces_stay_smooth(url, open_page):
    page = open_page(url)
    scripted(page, [*(delta(content=f"word{n} ") for n in range(10_000)), ENDED, "[DONE]"])
    say(page)
    page.wait_for_selector(".facts >> text=Again", timeout=20_000)
    assert page.inner_text("#messages li:last-child .answer").rstrip().endswith("word9999")


def test_the_page_is_small():
    paths = ["/", "/page/style.css", "/page/chat.js", "/page/server.js", "/page/markdown.js", "/favicon.ico"]
    assert sum(len(asset(path).body) for path in paths) < 60_000
    assert asset("/page/../keys.py") is None
