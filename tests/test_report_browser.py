# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The report in a browser: it draws, sorts, turns dark, fits on a phone, and asks for nothing from elsewhere."""

import json
import shutil
import time

import pytest
from made_up_sweep import made_up_verdicts, write_sweep

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
    write_sweep(folder / "first")
    write_sweep(folder / "second", small, baseline=False, live=False)
    folders = [str(folder / name) for name in ("first", "second")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_tempkd.report.page.verdicts", made_up_verdicts)
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
    chromium.execute_script("localStorage.clear()")
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


def drawn(driver, figure: str) -> list[list[str]]:
    """For each panel of a figure the names of the lines that are drawn."""
    script = """
        return [...document.querySelectorAll(`#s1-figure-${arguments[0]} .plot`)].map(plot =>
            plot.data.filter(trace => trace.meta.kind !== 'band').map(trace => trace.name))"""
    return driver.execute_script(script, figure)


def test_every_plot_is_drawn(browser):
    script = """
        return [...document.querySelectorAll('.plot')].map(plot =>
            plot.querySelectorAll('.scatterlayer path.js-line, .barlayer .point path').length)"""
    found = browser.execute_script(script)
    assert len(found) == 24 + 3 and all(found)
    names = ["forward_kl", "reverse_kl", "jsd(beta=0.1)", "teacher", "student before training"]
    assert drawn(browser, "scores") == [names, names]


def test_nothing_is_asked_from_elsewhere(browser, page):
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert page in asked and {url for url in asked if not url.startswith(("data:", "blob:"))} == {page}


def test_another_score(browser):
    before = browser.execute_script("return document.querySelector('#s1-figure-scores .plot').layout.yaxis.title.text")
    browser.execute_script("""
        const select = document.getElementById('s1-view-scores');
        select.value = 'kl_tau1'; select.dispatchEvent(new Event('change'));""")
    script = "return document.querySelector('#s1-figure-scores .plot').layout.yaxis.title.text"
    assert before.startswith("ROUGE-L") and browser.execute_script(script).startswith("KL(teacher, student)")
    assert "teacher" not in drawn(browser, "scores")[0]  # the made-up one has no such score
    shown = "return [...document.querySelectorAll('#s1-figure-scores [data-view]')].filter(e => !e.hidden).length"
    assert browser.execute_script(shown) == 2  # the tables of its numbers, one a mode
    assert browser.execute_script("return document.getElementById('s2-view-scores').value") == "rouge_l"


def test_the_legend_hides_and_shows(browser):
    button = browser.find_element("css selector", "#s1-figure-scores .legend button")
    assert button.text == "forward_kl" and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert all("forward_kl" not in names for names in drawn(browser, "scores"))
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert all("forward_kl" in names for names in drawn(browser, "scores"))


def test_a_long_legend_hides_and_shows_all_at_once(browser):
    count = "return document.querySelector('#s2-figure-scores .plot').data.length"
    before = browser.execute_script(count)
    click(browser, "Hide all")
    assert browser.execute_script(count) == 0 < before
    click(browser, "Show all")
    assert browser.execute_script(count) == before


def click(driver, text: str) -> None:
    button = driver.find_element("css selector", "#s2-figure-scores .legend li:last-child button")
    assert button.text == text
    button.click()


def test_tables_sort_by_number_both_ways(browser):
    table = browser.find_element("id", "s1-family-table")

    def column(number: int) -> list[float]:
        script = """
            return [...arguments[0].tBodies[0].rows].filter(row => !row.hidden)
                .map(row => Number(row.cells[arguments[1]].dataset.value))"""
        return browser.execute_script(script, table, number)

    buttons = table.find_elements("css selector", "thead button")
    assert len(buttons) == 9 and len(column(2)) == 6  # the rows of one score
    for number in (2, 5):
        buttons[number].click()
        assert column(number) == sorted(column(number))
        buttons[number].click()
        assert column(number) == sorted(column(number), reverse=True)
        heads = table.find_elements("css selector", "th[aria-sort]")
        assert [head.get_attribute("aria-sort") for head in heads] == ["descending"]


def test_light_and_dark(browser):
    def colours() -> list[str]:
        return browser.execute_script("""
            return [getComputedStyle(document.body).backgroundColor,
                    document.querySelector('.plot .xtick text').style.fill]""")

    light = colours()
    browser.find_element("id", "theme").click()
    dark = colours()
    assert sum(map(int, dark[0][4:-1].split(", "))) < 150 < 600 < sum(map(int, light[0][4:-1].split(", ")))
    assert light[1] != dark[1]  # the plots follow
    browser.refresh()
    wait(browser, "return document.documentElement.dataset.ready === 'true'")
    assert colours() == dark  # and it is remembered


def test_what_the_system_prefers(browser):
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wait(browser, "return document.documentElement.dataset.theme === 'dark'")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    wait(browser, "return document.documentElement.dataset.theme === 'light'")


def test_paper_is_light(browser):
    browser.find_element("id", "theme").click()
    script = """
        dispatchEvent(new Event(arguments[0]));
        return [document.documentElement.dataset.theme, document.querySelector('.plot').layout.width]"""
    assert browser.execute_script(script, "beforeprint") == ["light", 320]
    assert browser.execute_script(script, "afterprint")[0] == "dark"


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_sideways_scrolling(width, browser):
    size(browser, width)
    wait(browser, "return innerWidth === arguments[0]", width)
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)
    wait(browser, "return document.documentElement.scrollWidth <= innerWidth")
    wait(browser, "return [...document.querySelectorAll('.plot svg')].every(svg => svg.clientWidth <= innerWidth)")


def test_students_can_be_chosen(browser):
    script = """
        return new Set([...document.querySelectorAll('.student')].filter(e => !e.hidden)
            .map(e => e.dataset.student)).size"""
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
