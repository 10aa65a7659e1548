"""The report in a real headless Chromium: charts, keyboard, filters, hostile text, no request, dark and narrow.

Pictures go to the folder that REALRL_SCREENSHOTS names, of runs that are then long enough to be worth looking at (those of the
README; about ten minutes).
"""

import json
import os
import shutil
import threading
from pathlib import Path

import forked
import pytest
from made_runs import HOSTILE, make_run, rollout

from realrl.report.report import write_report
from realrl.report.watch import WatchServer

selenium = pytest.importorskip("selenium", reason="needs selenium: pip install 'realrl[browser]'")
from selenium import webdriver  # noqa: E402  only where it is installed
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
)
ROOT = Path(__file__).parents[2]
PICTURES = os.environ.get("REALRL_SCREENSHOTS")


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """A page of 1200 × 800 pixels in light colours, without the log of earlier pages."""
    look(chromium)
    chromium.get("about:blank")
    logs(chromium)
    return chromium


def look(browser, *, width=1200, height=800, scheme="light"):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def logs(browser):
    """Addresses that were asked for (pictures inside the file aside), and messages of the console, since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [address for address in asked if not address.startswith("data:image/svg+xml;base64,")]
    return asked, [entry["message"] for entry in browser.get_log("browser")]


def wait(browser, condition):
    return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())


def colours(browser, selector):
    """How many colours the first canvas of `selector` shows: 1 is blank."""
    return browser.execute_script(
        "const c = document.querySelector(arguments[0] + ' canvas');"
        "const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);"
        "return new Set(d).size",
        selector,
    )


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def texts(browser, selector):
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def slide(browser, value):
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', { bubbles: true }))"
    browser.execute_script(script, find(browser, "#step-slider"), str(value))


def open_report(browser, folders, output, compare=None):
    write_report(folders, output, compare)
    browser.get(output.as_uri())


def rows(step):
    made = [rollout(step, group) for group in range(4)]
    made[0] |= {"verdict": "no_answer", "reason": "no answer found", "extracted": "", "truncated": True}
    # Right by text, called wrong: what a second grader contradicts.
    made[2] |= {"answer": made[2]["extracted"]} if step == 2 else {}
    return made


@pytest.fixture
def report(browser, tmp_path):
    """Two seeds of one recipe and one of another."""
    runs = [make_run(tmp_path / f"real_{seed}", seed=seed, rows=rows) for seed in (0, 1)]
    runs.append(make_run(tmp_path / "grpo", objective={"type": "grpo"}))
    open_report(browser, runs, tmp_path / "report.html", "math-verify")
    return browser


def test_charts_are_drawn_and_nothing_is_asked_for(report):
    asked, said = logs(report)
    assert [address.partition(":")[0] for address in asked] == ["file"] and said == []
    titles = texts(report, "#charts figcaption strong")
    assert titles[:2] == ["Reward", "Held-out accuracy"] and "Entropy" in titles
    for number in range(1, len(titles) + 1):
        assert colours(report, f"#charts figure:nth-child({number})") > 5
    assert colours(report, "#band-charts figure") > 5
    drawn = report.execute_script("return [...document.querySelectorAll('.picture img')].map((image) => image.naturalWidth)")
    assert len(drawn) == 2 and min(drawn) > 100
    assert len(texts(report, "#held-out tbody tr")) == 2
    assert "The paper's Table 1" in find(report, "#paper-tables").get_attribute("textContent")


def test_a_chart_is_read_and_zoomed_with_the_mouse_and_the_keyboard(report):
    chart = find(report, "#charts .plot")
    chart.send_keys(Keys.ARROW_LEFT)
    shown = texts(report, "#charts .tooltip")[0]
    # Seeds 0 and 1 at step 6: 0.60 and 0.62.
    assert "step 6" in shown and "real 0.61 [" in shown and "n = 2" in shown and "grpo 0.6" in shown
    chart.send_keys(Keys.ARROW_LEFT)
    assert "step 5" in texts(report, "#charts .tooltip")[0]
    reset = find(report, "#reset-zoom")
    assert not reset.is_enabled()
    chart.send_keys("+")
    assert reset.is_enabled()
    chart.send_keys("0")
    assert not reset.is_enabled()
    chart.send_keys(Keys.ESCAPE)
    assert texts(report, "#charts .tooltip")[0] == ""
    over = find(report, "#charts .u-over")
    webdriver.ActionChains(report).move_to_element(over).click_and_hold().move_by_offset(60, 0).release().perform()
    assert reset.is_enabled()
    reset.click()
    assert not reset.is_enabled()


def test_a_series_can_be_hidden_and_smoothed(report):
    before = report.execute_script("return document.querySelector('#charts canvas').toDataURL()")
    boxes = report.find_elements(By.CSS_SELECTOR, "#legend input")
    boxes[1].click()
    hidden = report.execute_script("return document.querySelector('#charts canvas').toDataURL()")
    assert hidden != before
    Select(find(report, "#smoothing")).select_by_value("5")
    assert report.execute_script("return document.querySelector('#charts canvas').toDataURL()") != hidden


def test_the_rollouts_follow_slider_search_and_filters(report):
    assert find(report, "#step-shown").text == "6"
    assert len(texts(report, "#rollout-list li")) == 4
    slide(report, 1)
    assert find(report, "#step-shown").text == "2"
    assert {"What is 1 + 2?"} <= set(texts(report, "#rollout-list .row-text"))
    find(report, "#step-on").click()
    assert find(report, "#step-shown").text == "3"
    find(report, "#step-slider").send_keys(Keys.ARROW_LEFT)
    assert find(report, "#step-shown").text == "2"
    Select(find(report, "#verdict")).select_by_visible_text("no answer")
    assert texts(report, "#rollout-list .row-text") == ["What is 0 + 2?"]
    assert "no answer found" in find(report, "#detail .verdict-line").text
    Select(find(report, "#verdict")).select_by_index(0)
    Select(find(report, "#reason")).select_by_visible_text("equal integers")
    assert len(texts(report, "#rollout-list li")) == 2
    Select(find(report, "#reason")).select_by_index(0)
    for box, expected in (("#only-truncated", "What is 0 + 2?"), ("#only-disagree", "What is 2 + 2?")):
        find(report, box).click()
        assert texts(report, "#rollout-list .row-text") == [expected]
        find(report, box).click()
    find(report, "#all-steps").click()
    Select(find(report, "#sort")).select_by_value("score")
    # |s̄| = 0.01 × step.
    assert {text[-3:] for text in texts(report, "#rollout-list .row-text")[:4]} == {" 6?"}
    find(report, "#search").send_keys("WHAT IS 3 + 5")
    assert texts(report, "#rollout-list .row-text") == ["What is 3 + 5?"]
    assert find(report, "#extracted").text == "8"
    find(report, "#search").send_keys("xyz")
    assert "No rollout matches" in find(report, "#rollout-list").text


def test_the_list_is_walked_with_the_keyboard(report):
    first = find(report, "#rollout-list button")
    first.send_keys(Keys.ARROW_DOWN)
    active = report.switch_to.active_element
    assert active.get_attribute("aria-pressed") == "true" and "What is 1 + 6?" in active.text
    assert find(report, "#detail .prompt").text == "What is 1 + 6?"
    outline = report.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_has_a_name_and_comes_in_order(report):
    unnamed = report.execute_script(
        "return [...document.querySelectorAll('button, select, input, [tabindex=\"0\"]')].filter((e) => e.checkVisibility())"
        ".filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert report.execute_script("return [...document.querySelectorAll('[tabindex]')].every((e) => e.tabIndex <= 0)")
    find(report, "body").send_keys(Keys.TAB)
    assert report.switch_to.active_element.text == "Skip to the content"


def test_hostile_text_is_text(browser, tmp_path):
    text = HOSTILE.replace("\ud800", "")
    names = ("prompt", "response", "extracted", "answer", "reason", "problem_id", "verdict")
    run = make_run(tmp_path / "run<img src=x>", steps=2, rows=lambda step: [rollout(step, **dict.fromkeys(names, text))])
    (run / "alarms.txt").write_text("step 1: ALARM: <img src=x onerror=\"window.hacked = 'alarm'\">\n")
    recipe = (run / "config.toml").read_text()
    (run / "config_until_step_000001.toml").write_text(recipe.replace('"tiny-adder"', '"<i>other"'))
    open_report(browser, [run], tmp_path / "report.html")
    assert "1 run<img src=x> model.path <i>other tiny-adder" in find(browser, "#changes").text
    shown = find(browser, "#response").text
    assert shown.startswith("<img src=x onerror=\"window.hacked = 'img'\"> </script><script>window.hacked = 'script'</script>")
    assert "␛[31mred␛]0;title␇" in shown and "⟨U+202E⟩esrever ⟨U+2028⟩ & ${title}" in shown
    assert "\x1b" not in find(browser, "body").text
    assert "<img src=x onerror" in find(browser, "#alarm-list").text
    # The one image is the picture of the gradient weights.
    counts = "return [window.hacked ?? null, document.querySelectorAll(':not(.picture) > img').length, document.scripts.length]"
    assert browser.execute_script(counts) == [None, 0, 5]
    assert browser.title == "run<img src=x> · realrl"
    asked, said = logs(browser)
    assert len(asked) == 1 and said == []


def test_the_policy_stops_a_script_that_got_in(report):
    """Defence in depth: were text ever taken for markup, nothing of it would run or reach the network."""
    logs(report)
    report.execute_script(
        "const d = document.createElement('div'); document.body.append(d);"
        'd.innerHTML = \'<img src="http://127.0.0.1:9/x" onerror="window.hacked = 1">\';'
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 2';"
        "document.body.append(s); fetch('http://127.0.0.1:9/y').catch(() => { window.refused = true })"
    )
    wait(report, lambda: report.execute_script("return window.refused"))
    assert report.execute_script("return window.hacked ?? null") is None
    _, said = logs(report)
    assert sum("Content Security Policy" in line for line in said) >= 3


def test_tokens_are_coloured_on_demand(browser, tmp_path):
    ids, ratios = [5, 6, 7], [0.0, 0.5, -0.25]
    run = make_run(tmp_path / "run", steps=1, rows=lambda step: [rollout(step, token_ids=ids, log_ratio=ratios, tokens=3)])
    open_report(browser, [run], tmp_path / "report.html")
    assert browser.find_elements(By.CSS_SELECTOR, "#response .token") == []
    find(browser, "#colour-tokens").click()
    tokens = browser.find_elements(By.CSS_SELECTOR, "#response .token")
    assert [token.get_attribute("title") for token in tokens] == ["ρ = 1.0000", "ρ = 1.6487", "ρ = 0.7788"]
    grounds = [token.value_of_css_property("background-color") for token in tokens]
    assert len(set(grounds)) == 3 and grounds[0] == "rgba(0, 0, 0, 0)"


def test_without_rollouts_and_tokens_the_page_says_so(browser, tmp_path):
    run = make_run(tmp_path / "run", rollouts=0)
    open_report(browser, [run], tmp_path / "report.html")
    assert find(browser, "#no-rollouts").is_displayed() and not find(browser, "#browser").is_displayed()
    assert logs(browser)[1] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_nothing_is_wider_than_a_narrow_screen(report, scheme):
    look(report, width=375, scheme=scheme)
    wait(report, lambda: report.execute_script("return innerWidth") == 375)
    assert report.execute_script("return document.documentElement.scrollWidth") <= 375
    for selector in ("body", "#charts .about", "#rollout-list .chip.correct", "#rollout-list .quiet"):
        assert contrast(report, selector) >= 4.5, selector


def contrast(browser, selector):
    """WCAG's ratio of an element's text to the ground below it, translucent grounds mixed in."""
    return browser.execute_script(
        """
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
        const chain = []; const own = document.querySelector(arguments[0]);
        for (let e = own; e; e = e.parentElement) chain.unshift(getComputedStyle(e).backgroundColor);
        const paint = (colours) => { for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = light(paint(chain)); const text = light(paint([getComputedStyle(own).color]));
        return (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05);
        """,
        selector,
    )


def test_watch_shows_a_run_from_before_its_first_step_to_its_end(browser, tmp_path):
    with WatchServer(tmp_path / "run") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        browser.get(server.url)
        status = find(browser, "#status")
        wait(browser, lambda: status.text == "waiting for the run to begin")
        run = make_run(tmp_path / "half", steps=6)
        whole = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[:4]))
        run.rename(tmp_path / "run")
        wait(browser, lambda: status.text.startswith("step 3 of 6"))
        assert colours(browser, "#charts figure") > 5
        find(browser, "#search").send_keys("3 + 6")
        (tmp_path / "run" / "metrics.jsonl").write_text(whole)
        wait(browser, lambda: status.text == "finished, 6 steps")
        # What was typed and found stays.
        assert texts(browser, "#rollout-list .row-text") == ["What is 3 + 6?"]
        server.shutdown()
    wait(browser, lambda: status.text == "realrl watch has ended")
    asked, _ = logs(browser)
    assert {address.removeprefix(server.url) for address in asked} <= {"", "data.json", "favicon.ico"}


def test_a_real_training_has_a_report(browser, tmp_path):
    """`realrl train`, then `realrl report`: the pictures of the README where REALRL_SCREENSHOTS names a folder."""
    steps, seeds, kinds = (60, (0, 1, 2), ("real", "grpo")) if PICTURES else (4, (0,), ("real",))
    recipe = [
        "recipes/tiny.toml",
        "--train.mini_batch_prompts",
        "4",
        "--optim.lr",
        "5e-5",
        "--log.tokens",
        "true",
        "--log.figure",
        "false",
    ]
    recipe += f"--train.steps {steps} --eval.every {max(steps // 10, 2)} --eval.problems {128 if PICTURES else 16}".split()
    runs = [(kind, seed, tmp_path / f"{kind}_{seed}") for kind in kinds for seed in seeds]
    for kind, seed, folder in runs:
        chosen = ["--run.dir", folder, "--run.seed", seed, "--objective.type", kind]
        realrl("train", *recipe, *chosen)
    output = tmp_path / "report.html"
    realrl("report", *(folder for _, _, folder in runs), "-o", output)
    browser.get(output.as_uri())
    asked, said = logs(browser)
    assert len(asked) == 1 and said == []
    titles = texts(browser, "#charts figcaption strong")
    assert {"Reward", "Held-out accuracy", "Entropy", "Gradient norm", "Response length", "Score s̄"} <= set(titles)
    facts = find(browser, "#facts").text
    assert "tiny-adder" in facts and "torch" in facts and "Commit" in facts
    assert "tokens)" in find(browser, "#ratios").text
    find(browser, "#colour-tokens").click()
    tokens = browser.find_elements(By.CSS_SELECTOR, "#response .token")
    assert "boxed{" in "".join(token.text for token in tokens)
    if PICTURES:
        take_pictures(browser, Path(PICTURES))


def take_pictures(browser, folder):
    folder.mkdir(parents=True, exist_ok=True)
    # Those whose tokens have moved most.
    find(browser, "#all-steps").click()
    Select(find(browser, "#sort")).select_by_value("score")
    find(browser, "#rollout-list button").click()
    for scheme in ("light", "dark"):
        look(browser, scheme=scheme)
        for section in ("summary", "curves", "distributions", "evaluation", "rollouts"):
            browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", section)
            browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            browser.save_screenshot(str(folder / f"report_{section}_{scheme}.png"))


def realrl(*words):
    done = forked.realrl(*words)
    assert done.returncode == 0, done.stderr
