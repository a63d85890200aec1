# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The report in a browser: it draws, sorts, turns dark, fits on a phone, and asks for nothing from elsewhere."""

import json
import shutil
import time

import pytest
from made_up_sweep import HYPOTHESES, write_sweep

from trl_tempkd import cli


webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver here")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-prefers-reduced-motion"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """Address of a page with two folders."""
    folder = tmp_path_factory.mktemp("browser")
    names = ["tvd", "todi", "adaptive_kl", "alpha_beta", "taid", "concrete_score", "entropy_aware"]
    small = {"divergence": names, "tau": [1.0, 2.0], "seed": [1]}
    write_sweep(folder / "first", hypotheses=HYPOTHESES)
    write_sweep(folder / "second", small, baseline=False, live=False)
    folders = [str(folder / name) for name in ("first", "second")]
    assert cli.main(["report", *folders, "--output", str(folder / "x.html")]) == 0
    return (folder / "x.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, drawn, on a wide light screen. No test may leave an error in the console."""
    chromium.get_log("browser"), chromium.get_log("performance")
    size(chromium, 1280)
    chromium.get(page)
    wait(chromium, "return document.documentElement.dataset.ready === 'true'")
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def size(driver, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def wait(driver, script: str, *args):
    for _ in range(100):
        if driver.execute_script(script, *args):
            return
        time.sleep(0.1)
    raise AssertionError(f"still not so after 10 seconds: {script}")


# The lines of the view that a figure shows, panel by panel
DRAWN = """
    const view = `#s1-figure-${arguments[0]} [data-view]:not([hidden])`;
    return [...document.querySelectorAll(`${view} .panels svg`)].map(panel =>
        [...panel.querySelectorAll('[data-name]')].filter(e => e.style.display !== 'none').map(e => e.dataset.name))"""


def drawn(driver, figure: str) -> list[list[str]]:
    return driver.execute_script(DRAWN, figure)


def test_every_plot_is_drawn(browser):
    script = """
        return [...document.querySelectorAll('figure')].map(figure =>
            [...figure.querySelectorAll('[data-view]:not([hidden]) .panels svg')].map(panel =>
                panel.getBoundingClientRect().width > 200 && panel.querySelectorAll('polyline, rect').length > 0))"""
    found = browser.execute_script(script)
    assert len(found) == 11 + 3 and all(panels and all(panels) for panels in found)
    names = ["forward_kl", "reverse_kl", "jsd(beta=0.1)", "teacher", "student before training"]
    assert drawn(browser, "scores") == [names, names]


def test_a_point_says_what_it_is(browser):
    point = browser.find_element("css selector", "#s1-figure-scores .point title")
    assert point.get_attribute("textContent").startswith("forward_kl\ntau 1: ")


def test_nothing_is_asked_from_elsewhere(browser, page):
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert page in asked and {url for url in asked if not url.startswith(("data:", "blob:"))} == {page}


def test_another_score(browser):
    browser.execute_script("""
        const select = document.querySelector('#s1-figure-scores select');
        select.value = 'kl_tau1'; select.dispatchEvent(new Event('change'));""")
    label = "return document.querySelector('#s1-figure-scores [data-view]:not([hidden]) .panels svg').ariaLabel"
    assert "KL(teacher, student)" in browser.execute_script(label)
    assert "teacher" not in drawn(browser, "scores")[0]  # the made-up one has no such score
    assert browser.execute_script("return document.querySelector('#s2-figure-scores select').value") == "rouge_l"


def test_the_legend_hides_and_shows(browser):
    button = browser.find_element("css selector", "#s1-figure-scores [data-view]:not([hidden]) .legend button")
    assert button.text == "forward_kl" and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert all("forward_kl" not in names for names in drawn(browser, "scores"))
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert all("forward_kl" in names for names in drawn(browser, "scores"))


def test_tables_sort_by_number_both_ways(browser):
    table = browser.find_element("id", "s1-conditions")

    def column(number: int) -> list[float]:
        script = """
            return [...arguments[0].tBodies[0].rows].filter(row => !row.hidden)
                .map(row => row.cells[arguments[1]].dataset.value).filter(value => value !== '').map(Number)"""
        return browser.execute_script(script, table, number)

    buttons = table.find_elements("css selector", "thead button")
    assert len(buttons) == 9 and len(column(3)) == 15  # the rows of one score
    for number in (1, 3, 4):
        buttons[number].click()
        assert column(number) == sorted(column(number))
        buttons[number].click()
        assert column(number) == sorted(column(number), reverse=True)
        heads = table.find_elements("css selector", "th[aria-sort]")
        assert [head.get_attribute("aria-sort") for head in heads] == ["descending"]


def colours(driver) -> list[int]:
    """How light the page, its text and the text of a plot are."""
    found = driver.execute_script("""
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                getComputedStyle(document.querySelector('.panels svg text')).fill]""")
    return [sum(map(int, colour[4:-1].split(", "))) for colour in found]


@pytest.mark.parametrize("media, dark", [("screen", True), ("print", False)])
def test_light_and_dark(media, dark, browser):
    """As the system prefers; paper is light."""
    page, text, plot = colours(browser)
    assert page > 700 and text < 150 and plot < 350
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    try:
        page, text, plot = colours(browser)
        assert (page < 150 and text > 600 and plot > 450) == dark and (page > 700) != dark
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_sideways_scrolling(width, browser):
    size(browser, width)
    wait(browser, "return innerWidth === arguments[0]", width)
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)
    wait(browser, "return document.documentElement.scrollWidth <= innerWidth")
    wait(browser, "return [...document.querySelectorAll('.panels svg')].every(svg => svg.clientWidth <= innerWidth)")


def test_students_can_be_chosen(browser):
    script = """
        return new Set([...document.querySelectorAll('.student')].filter(e => !e.hidden)
            .map(e => e.dataset.said)).size"""
    assert browser.execute_script(script) == 4
    browser.find_element("css selector", ".samples summary").click()
    browser.find_element("css selector", "input[data-student='jsd(beta=0.1), tau 1']").click()
    assert browser.execute_script(script) == 5
    text = browser.find_element("css selector", ".samples .box").text
    assert "jsdbeta0.1-tau1-both-seed1 says" in text
    assert "</script><img src=x" in text  # the prompt, as it is


def test_every_control_has_a_name(browser):
    script = """
        const named = e => e.ariaLabel || e.labels?.length || (e.tagName === 'BUTTON' && e.textContent.trim());
        return [...document.querySelectorAll('button, select, input, [role=img], [role=region]')]
            .filter(e => !named(e)).map(e => e.outerHTML)"""
    assert browser.execute_script(script) == []
