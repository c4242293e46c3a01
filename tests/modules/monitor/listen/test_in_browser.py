"""The page to listen to, used in Chromium as from a disk (file://)."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.screenshot import find_browser, launch
from modules.data.labels import Label, read_labels
from modules.monitor.listen.page import PART_SECONDS, ListenPage, Track
from tests.modules.monitor.listen.examples import (
    HOSTILE,
    RATE,
    tone,
    tracks,
    write_page,
)

# In CI, where it must be installed, a browser that is missing is a failure.
MUST_RUN = os.environ.get("NEEDS_BROWSER") == "1"
# Hertz of the loudest tone that leaves the page.
HERTZ = """async () => {
    const analyser = new AnalyserNode(context, { fftSize: 1024 });
    for (const { gain } of tracks) gain.connect(analyser);
    await new Promise((resolve) => setTimeout(resolve, 250));
    const level = new Float32Array(analyser.frequencyBinCount);
    analyser.getFloatFrequencyData(level);
    return level.indexOf(Math.max(...level)) * context.sampleRate / 1024;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not MUST_RUN:
        pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        if not (MUST_RUN or find_browser(playwright)):
            pytest.skip("no Chromium; docs/screenshot.py says how to install it")
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Pages by the number of their examples."""
    root = tmp_path_factory.mktemp("pages")
    return {n: write_page(root / str(n), n, heard) for n, heard in ((3, 3), (300, 8))}


class Window:
    """A page in a window, and what went wrong in it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.tab = browser.new_page(**options)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.faults.append(request.url))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on(
            "console",
            lambda m: m.type in ("error", "warning") and self.faults.append(m.text),
        )
        self.tab.goto(path.as_uri())

    def ids(self) -> list[str]:
        cells = self.tab.locator("tbody td:first-child").all_inner_texts()
        return [cell.removeprefix("▶ ") for cell in cells]

    def column(self, number: int) -> list[str]:
        return self.tab.locator(f"tbody td:nth-child({number})").all_inner_texts()

    def position(self) -> float:
        return self.tab.evaluate("position()")

    def chosen(self) -> str:
        return self.tab.locator(".track.chosen button").inner_text()

    def wait(self, condition: str) -> None:
        self.tab.wait_for_function(condition, timeout=10000)

    def close(self) -> None:
        """Close it; nothing may have gone wrong."""
        self.tab.close()
        assert not self.faults


@pytest.mark.parametrize("number", [3, 300])
def test_tracks_play_together_and_a_switch_keeps_the_place(browser, pages, number):
    window = Window(browser, pages[number])
    tab = window.tab
    assert not [url for url in window.requests if url.endswith(".js")], "no audio yet"
    window.wait("[...document.images].every((image) => image.naturalWidth)")
    assert sum(url.endswith(".png") for url in window.requests) == 5, "of one example"
    tab.click("#play")
    window.wait("position() > 0.1")
    begun = tab.evaluate("begun")
    assert begun is not None and tab.evaluate("sources.length") == 5
    for act, heard, hertz in (
        (lambda: tab.keyboard.press("2"), "2 estimate 1", 300),
        (lambda: tab.keyboard.press("4"), "4 estimate 2", 1200),
        (lambda: tab.keyboard.press("x"), "2 estimate 1", 300),
        (lambda: tab.click("text=target 2"), "5 target 2", 1200),
    ):
        act()
        assert window.chosen().startswith(heard)
        assert tab.evaluate(HERTZ) == pytest.approx(hertz, abs=20)
    assert tab.evaluate("begun") == begun, "one clock since the start"
    tab.keyboard.press(" ")
    stopped = window.position()
    assert 0.5 < stopped < 3
    tab.keyboard.press("3")
    assert window.position() == stopped and window.chosen().startswith("3 target 1")
    tab.keyboard.press(" ")
    window.wait(f"position() > {stopped}")
    assert tab.evaluate(HERTZ) == pytest.approx(300, abs=20)
    window.close()


def test_a_click_on_a_picture_goes_there_and_the_end_stops_or_repeats(browser, pages):
    window = Window(browser, pages[3])
    tab = window.tab
    picture = tab.locator(".picture").nth(1)
    window.wait("[...document.images].every((image) => image.naturalWidth)")
    box = picture.bounding_box()
    picture.click(position={"x": 0.9 * box["width"], "y": 20})
    assert window.chosen().startswith("2 estimate 1 output 2, +3.0 dB")
    assert window.position() == pytest.approx(2.7, abs=0.02)
    tab.keyboard.press("ArrowLeft")
    assert window.position() == pytest.approx(1.7, abs=0.02)
    tab.evaluate("seek(2.8)")
    tab.keyboard.press(" ")
    window.wait("!isPlaying")
    assert window.position() == 0
    tab.check("#loop")
    tab.evaluate("seek(2.8)")
    tab.keyboard.press(" ")
    window.wait("isPlaying && position() < 1")
    window.close()


HIGH_AT_BORDER = 300 + 0.25 / PART_SECONDS  # hertz of a sine that is 1 after a part


def test_parts_of_a_long_track_join_without_a_seam(browser, tmp_path):
    """A steady tone over a border is as smooth there as elsewhere."""
    page = ListenPage(tmp_path)
    seconds = {"low": 2 * PART_SECONDS + 1, "short": PART_SECONDS / 2}
    waves = {name: tone(HIGH_AT_BORDER, length) for name, length in seconds.items()}
    page.add("long", [Track.of_wave(k, wave_T, RATE) for k, wave_T in waves.items()])
    window = Window(browser, page.write("long"))
    tab = window.tab
    tab.evaluate(f"seek({PART_SECONDS - 1.5})")
    tab.click("#play")
    window.wait("sources.length >= 2")  # the next part is loaded, but none after it
    early = window.position() < PART_SECONDS
    assert not early or not [url for url in window.requests if "-2.js" in url]
    steps = tab.evaluate(
        """async () => {
            const analyser = new AnalyserNode(context, { fftSize: 8192 });
            tracks[0].gain.connect(analyser);
            while (position() < BORDER + 0.4) await new Promise(requestAnimationFrame);
            const wave = new Float32Array(8192);
            analyser.getFloatTimeDomainData(wave);
            return Array.from(wave.subarray(1), (v, k) => Math.abs(v - wave[k]));
        }""".replace("BORDER", str(PART_SECONDS))
    )
    steepest = 0.3 * 2 * math.pi * HIGH_AT_BORDER / RATE
    assert 0.9 * steepest < max(steps) < 1.02 * steepest
    window.close()


def test_the_list_is_sorted_and_searched(browser, pages):
    window = Window(browser, pages[300])
    tab = window.tab
    scores = window.column(2)
    assert scores[0] == "nan" and scores[-1] == "–" and len(scores) == 300
    values = [float(score) for score in scores[1:-1]]
    assert values == sorted(values), "the worst first"
    assert tab.get_attribute("th:nth-child(2)", "aria-sort") == "ascending"
    tab.click("th:nth-child(2) button")
    values = [float(score) for score in window.column(2)[:-2]]
    assert values == sorted(values, reverse=True)
    tab.click("th:nth-child(1) button")
    assert window.ids() == sorted(window.ids())
    tab.click("th:nth-child(3) button")
    values = [float(score) for score in window.column(3)]
    assert values == sorted(values)

    tab.keyboard.press("/")
    tab.keyboard.type("PLE 01")
    assert window.ids() and all("ple 01" in id_ for id_ in window.ids())
    assert tab.inner_text("#count") == "10 of 300"
    tab.fill("#search", "nothing like it")
    assert not window.ids()
    tab.fill("#search", "")
    tab.check("#audible")
    assert len(window.ids()) == 8
    assert tab.locator("tbody button").count() == 8
    tab.uncheck("#audible")
    tab.click("#bars button:nth-child(1)")
    assert 0 < len(window.ids()) < 60
    tab.click("#bars button:nth-child(1)")
    assert len(window.ids()) == 300
    window.close()


def test_examples_are_reached_from_the_keyboard(browser, pages):
    window = Window(browser, pages[3])
    tab = window.tab
    order = window.ids()
    assert tab.inner_text("#id") == order[0] and HOSTILE in order
    tab.keyboard.press("n")
    assert tab.inner_text("#id") == order[1]
    tab.keyboard.press("n")
    tab.keyboard.press("n")
    assert tab.inner_text("#id") == order[2] and tab.is_disabled("#next")
    tab.keyboard.press("p")
    assert tab.inner_text("#id") == order[1]
    tab.focus("tbody tr:nth-child(1) button")
    tab.keyboard.press("Enter")
    assert tab.inner_text("#id") == order[0]
    tab.focus("#search")
    tab.keyboard.type("n2 x")
    assert tab.inner_text("#id") == order[0] and window.chosen() == "1 mixture"
    assert tab.title() == "a <b>run</b>", "what strangers wrote is text"
    window.close()


def test_missing_audio_is_named(browser, tmp_path):
    page = write_page(tmp_path, 3, 3)
    for path in tmp_path.rglob("0000-mixture-0.js"):
        path.unlink()
    window = Window(browser, page)
    window.tab.click("#play")
    window.wait("document.getElementById('note').textContent.includes('is missing')")
    assert not window.tab.evaluate("isPlaying")
    window.tab.close()


def test_labels_are_decided_by_keys_and_saved_as_a_table(browser, tmp_path):
    page = ListenPage(tmp_path)
    ids = {'a "b", c bass': ('a "b", c', "bass"), "d drums": ("d", "drums")}
    ids |= {"e other": ("e", "other"), HOSTILE: (HOSTILE, "vocals")}
    for id_ in ids:
        page.add(id_, tracks())
    labels = {
        id_: (*key, 0.9 - 0.1 * n, "drums") for n, (id_, key) in enumerate(ids.items())
    }
    rows: list[dict] = [{"id": id_, "right": 1 - x[2]} for id_, x in labels.items()]
    window = Window(browser, page.write("audit", rows, "right", labels=labels))
    tab = window.tab
    assert window.ids() == [*ids], "the most probably wrong first"
    assert tab.is_disabled("#download")
    tab.keyboard.press("w")
    tab.keyboard.press("n")
    tab.keyboard.press("w")
    tab.keyboard.press("r")  # another decision replaces the first
    assert not tab.is_checked("#loop"), "r repeats where there is nothing to decide"
    tab.keyboard.press("n")
    tab.keyboard.press("u")
    window.wait("[...document.images].every((image) => image.naturalWidth)")
    tab.reload()
    window.wait("[...document.images].every((image) => image.naturalWidth)")
    assert window.ids()[:2] == ['a "b", c bass – wrong', "d drums – right"]
    with tab.expect_download() as download:
        tab.click("text=Save 3 as labels.csv")
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == {
        ('a "b", c', "bass"): Label(1, "drums"),
        ("d", "drums"): Label(0, ""),
        ("e", "other"): Label(pytest.approx(0.7), "drums"),
    }
    window.close()


def test_a_page_without_labels_has_nothing_to_decide(browser, pages):
    window = Window(browser, pages[3])
    window.tab.keyboard.press("w")
    window.tab.keyboard.press("r")
    assert window.tab.is_checked("#loop")
    assert window.tab.is_hidden("#verdicts") and window.tab.is_hidden("#download")
    window.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, pages, scheme):
    size = {"width": 360, "height": 640}
    options = {"has_touch": True, "is_mobile": True, "color_scheme": scheme}
    window = Window(browser, pages[300], viewport=size, **options)
    tab = window.tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    is_dark = sum(map(int, colour[4:-1].split(","))) < 3 * 128
    assert is_dark == (scheme == "dark")
    tab.tap("#play")
    window.wait("position() > 0.1")
    tab.tap(".track:nth-child(2) button")
    assert window.chosen().startswith("2 estimate 1")
    tab.tap("tbody button >> nth=5")
    assert not tab.evaluate("isPlaying")
    window.wait("document.getElementById('player').getBoundingClientRect().top >= -1")
    window.close()
