"""The page in a real browser, Debian's Chromium: what is painted, who can read it, what can be done without a mouse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from mosaic_photon.cli import main
from report.made import write_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGES = ("usual", "three", "long", "odd", "two")
SIZES = {"phone": 390, "desktop": 1280}
PLOT = "Bokeh.index.roots.find((view) => view.el.closest('#plot-0')).model"
LINES = f"{PLOT}.renderers.filter((one) => one.glyph)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.html for each of PAGES."""
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "usual", 400)
    write_run(folder / "three", 3)
    write_run(folder / "long", 100_000)
    write_run(folder / "odd", 200, bad=[100, 101, 199], restarts=[80, 150])
    write_run(folder / "other", 300, lr=1e-3)
    for name in PAGES:
        runs = [folder / "usual", folder / "other"] if name == "two" else [folder / name]
        assert main(["report", *map(str, runs), "--out", str(folder / f"{name}.html")]) == 0
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.fail("Chromium is not installed: make browser")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def look(browser: webdriver.Chrome, page: Path, size: str = "desktop", scheme: str = "light") -> None:
    """Open the page at a width in a colour scheme, and wait until all is drawn."""
    metrics = {"width": SIZES[size], "height": 900, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    ready = "return document.documentElement.dataset.ready === 'true' && Bokeh.documents.every((one) => one.is_idle)"
    WebDriverWait(browser, 120).until(lambda driver: driver.execute_script(ready))


def requests(browser: webdriver.Chrome) -> list[str]:
    """Addresses that were asked for since the page was opened, but for what it has in itself."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("data:")]


def pixels(browser: webdriver.Chrome, plot: int) -> dict[str, int]:
    """How often each colour is in a plot's canvas, the ten most frequent."""
    script = """
    const find = (root) => [...root.querySelectorAll("*")].flatMap((one) =>
      one.tagName === "CANVAS" ? [one] : one.shadowRoot ? find(one.shadowRoot) : []);
    const counts = {};
    for (const canvas of find(document.querySelectorAll("figure")[arguments[0]])) {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) {
        const colour = `${data[i]},${data[i + 1]},${data[i + 2]}`;
        counts[colour] = (counts[colour] || 0) + 1;
      }
    }
    return Object.fromEntries(Object.entries(counts).sort((a, b) => b[1] - a[1]).slice(0, 10));
    """
    return browser.execute_script(script, plot)


def nodes(browser: webdriver.Chrome) -> list[tuple[str, str, dict[str, Any]]]:
    """Role, name and properties of all that the accessibility tree has."""
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = []
    for node in tree:
        if not node.get("ignored"):
            properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
            name = node.get("name", {}).get("value", "")
            found.append((node["role"]["value"], name, properties))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_fetched_nothing_fails_and_nothing_sticks_out(
    name: str, size: str, browser: webdriver.Chrome, pages: Path
) -> None:
    look(browser, pages / f"{name}.html", size)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []
    assert requests(browser) == [(pages / f"{name}.html").as_uri()]
    assert browser.execute_script("const all = document.documentElement; return all.scrollWidth <= all.clientWidth")
    wider = "return [...document.querySelectorAll('figure, .canvas')].filter((one) => one.scrollWidth > innerWidth)"
    assert browser.execute_script(wider) == []
    cut = "return [...document.querySelectorAll('.wide')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert browser.execute_script(f"{cut}.map((one) => one.ariaLabel)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_plots_are_painted_in_the_scheme_s_colours(scheme: str, browser: webdriver.Chrome, pages: Path) -> None:
    ground = {"light": "255,255,255", "dark": "20,23,27"}
    look(browser, pages / "two.html", "phone", scheme)
    found = pixels(browser, 0)
    assert max(found, key=found.__getitem__) == ground[scheme]
    assert {"0,114,178", "213,94,0"} <= set(found)  # a line of each run
    other = {"light": "dark", "dark": "light"}[scheme]
    media = [{"name": "prefers-color-scheme", "value": other}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})  # while the page is open
    WebDriverWait(browser, 30).until(lambda driver: ground[scheme] not in pixels(driver, 0))
    found = pixels(browser, 0)
    assert max(found, key=found.__getitem__) == ground[other]


@pytest.mark.parametrize("size", SIZES)
def test_screen_readers_find_headings_tables_and_what_plots_show(
    size: str, browser: webdriver.Chrome, pages: Path
) -> None:
    look(browser, pages / "odd.html", size)
    found = nodes(browser)
    headings = [(properties["level"], name) for role, name, properties in found if role == "heading"]
    assert [name for level, name in headings if level == 1] == ["Run odd"]
    assert [name for level, name in headings if level == 2] == ["Plots", "Losses", "Time", "Data", "Job"]
    assert (3, "Training loss") in headings
    tables = {name for role, name, _ in found if role == "table"}
    assert {"The run", "Last and lowest losses", "What the time went into", "Starts of the job", "The job"} <= tables
    assert {"columnheader", "rowheader"} <= {role for role, _, _ in found}
    images = [name for role, name, _ in found if role in ("image", "img")]
    assert len(images) == len([1 for level, _ in headings if level == 3])
    assert images[0].startswith("Training loss Training loss: first ") and "3 of 200 values not finite" in images[0]
    controls = ("image", "img", "button", "radio", "checkbox")
    assert [role for role, name, _ in found if role in controls and not name] == []
    assert len([1 for role, _, _ in found if role == "main"]) == 1


def test_keys_reach_and_move_every_control(browser: webdriver.Chrome, pages: Path) -> None:
    look(browser, pages / "two.html")

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def focused() -> str:
        script = "const one = document.activeElement; return one.name || one.id || one.dataset.line || one.className"
        return browser.execute_script(script)

    press(Keys.TAB)
    assert focused() == "skip"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    press(Keys.ENTER)
    press(Keys.TAB)
    assert focused() == "x"
    press(Keys.ARROW_RIGHT)
    assert browser.execute_script(f"return {LINES}.map((one) => one.glyph.x.field)") == ["tokens"] * 4
    press(Keys.TAB, Keys.ARROW_RIGHT)
    assert focused() == "y"
    assert browser.execute_script(f"return {PLOT}.y_scale.type") == "LogScale"
    press(Keys.TAB)
    assert focused() == "whole"
    press(Keys.ENTER, Keys.TAB)
    assert focused() == "zoom"
    press(Keys.TAB)
    assert focused() == "0"
    press(Keys.SPACE)
    assert browser.execute_script(f"return {LINES}.map((one) => one.visible)") == [False, False, True, True]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_drag_zooms_all_plots_and_the_button_shows_the_whole_run(browser: webdriver.Chrome, pages: Path) -> None:
    look(browser, pages / "usual.html")
    range_of = PLOT.replace("plot-0", "plot-1") + ".x_range"
    span = f"return {range_of}.end - {range_of}.start"
    whole = browser.execute_script(span)
    browser.find_element("id", "zoom").click()
    canvas = browser.find_element("css selector", "#plot-0 .canvas")
    ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(80, 30).release().perform()
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(span) < whole / 2)
    browser.find_element("id", "whole").click()
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(span) > whole * 0.9)


def test_a_finger_and_a_wheel_scroll_past_the_plots(browser: webdriver.Chrome, pages: Path) -> None:
    look(browser, pages / "usual.html", "phone")
    plots = "Bokeh.index.roots.filter((view) => view.canvas_view)"
    actions = f"return {plots}.map((view) => getComputedStyle(view.canvas_view.events_el).touchAction)"
    assert set(browser.execute_script(actions)) == {"auto"}
    browser.execute_script("document.querySelector('#plot-0 .canvas').scrollIntoView({block: 'center'})")
    before = browser.execute_script("return scrollY")
    gesture = {"x": 195, "y": 450, "yDistance": -300, "gestureSourceType": "mouse", "speed": 3000}
    browser.execute_cdp_cmd("Input.synthesizeScrollGesture", gesture)
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script("return scrollY") > before + 100)
