"""The HTML report in a real browser: `python -m pytest -m browser`, with Debian's chromium and chromium-driver.

Pictures of the whole page are kept in the folder that ``JAXUNLEARN_SCREENSHOTS`` names, else in pytest's own.
"""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest

from jaxunlearn.report import figures, web
from tests.test_report import make

pytestmark = pytest.mark.browser
#: Without the background-networking flags Chromium asks for addresses of its own.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
DEPTH = {
    "recognised": {"mirrored": 0.3, "cropped": 0.2, "shifted": 0.1, "noisy": 0.4, "jpeg": 0.5, "rotated": None},
    "restoring_l2": {"median": 0.04, "min": 0.01, "found": 12, "of": 12},
    "relearn": {"steps": 3, "max_steps": 100, "accuracy": 1.0},
}


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs jaxunlearn[browser]")
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("needs the programs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    run = make(
        k=12, missed=2, shape=(32, 32, 3), depth=DEPTH, arch="cifar_resnet20",
        class_names=[f"class {c}" for c in "abcdefghij"],
        ids=[f"people/a rather long name of a folder/{i} of a person's picture.jpg" for i in range(12)],
        weights={"parameters": 9, "changed": 4, "relative_l2": 0.1, "statistics": 0, "added": 0},
        digests={"weights before": "0123456789abcdef" * 4, "forget set": "fedcba9876543210" * 4},
        command="jaxunlearn unlearn " + "--flag value " * 30,
        earlier=[{"run": "r", "id": "x", "label": 1, "after": 2, "forgotten": True}],
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(web.html(run, figures.draw(folder, run), folder), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    named = os.environ.get("JAXUNLEARN_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep(browser, path):
    """Write a picture of the whole page, not only of what the window shows."""
    found = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(found["data"]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_accessible_and_fits(browser, address, screenshots, width, scheme):
    axe = pytest.importorskip("axe_selenium_python", reason="needs jaxunlearn[browser]")
    feature = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    keep(browser, screenshots / f"report-{width}-{scheme}.png")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0

    checker = axe.Axe(browser)
    # The page's own policy lets no script in from outside, so the checker's text is handed over as the driver's.
    browser.execute_script(Path(checker.script_url).read_text(encoding="utf-8"))
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert found["passes"]
    assert [(each["id"], each["help"]) for each in found["violations"]] == []


def test_the_table_of_instances_sorts(browser, address):
    browser.get(address)
    head = "document.querySelectorAll('table.sortable th')[arguments[0]]"
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    cells = f"return {rows}.map((row) => row.cells[arguments[0]].textContent)"
    click, direction = f"{head}.querySelector('button').click()", f"return {head}.getAttribute('aria-sort')"
    for column in (1, 5, 6):
        before = browser.execute_script(cells, column)
        browser.execute_script(click, column)
        up = browser.execute_script(cells, column)
        assert browser.execute_script(direction, column) == "ascending"
        browser.execute_script(click, column)
        down = browser.execute_script(cells, column)
        assert browser.execute_script(direction, column) == "descending"
        assert sorted(before) == sorted(up) == sorted(down)
        assert up != down
    steps = [-1 if cell == "-" else int(cell) for cell in down]
    assert steps == sorted(steps, reverse=True)


def test_the_table_of_instances_is_filtered_from_the_keyboard(browser, address):
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    shown = f"return {rows}.filter((row) => row.offsetParent).map((row) => row.querySelector('th').textContent)"
    said = "return document.querySelector('.filter [role=status]').textContent"
    whole = browser.execute_script(shown)
    assert len(whole) == 12
    browser.find_element("css selector", "label[for=filter]").click()
    field = browser.switch_to.active_element
    assert field.get_attribute("id") == "filter"
    field.send_keys("FOLDER/1")
    assert browser.execute_script(shown) == [name for name in whole if "folder/1" in name]
    assert browser.execute_script(said) == "3 of 12"
    field.send_keys(Keys.TAB)  # to the table that scrolls
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)  # its first head: what is sorted stays filtered
    assert browser.switch_to.active_element.text == "id"
    assert browser.find_element("css selector", "th[aria-sort=ascending]").text == "id"
    assert len(browser.execute_script(shown)) == 3
    field.send_keys(Keys.CONTROL + "a", Keys.BACKSPACE)
    label = browser.execute_script(f"return {rows}[0].querySelector('th').nextElementSibling.textContent")
    field.send_keys(label)
    labels = f"return {rows}.filter((row) => row.offsetParent).map((row) => row.cells[2].textContent)"
    assert set(browser.execute_script(labels)) == {label}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert sorted(browser.execute_script(shown)) == sorted(whole)  # paper has all of them, and no field
        assert not field.is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    field.send_keys(Keys.CONTROL + "a", Keys.BACKSPACE)
    assert sorted(browser.execute_script(shown)) == sorted(whole)
    assert browser.execute_script(said) == ""
    field.send_keys("nowhere")
    assert browser.execute_script(shown) == []
    assert browser.execute_script(said) == "0 of 12"
