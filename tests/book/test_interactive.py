"""The interactive figures, driven as a reader would drive them."""

import pytest
from browser import Browser
from chapters import BOOK, load_script

from kernels import SIMULATED

STEPPER = BOOK / "_static" / "warp_stepper.html"
CALCULATOR = BOOK / "_static" / "run_cost.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def choose(browser, kernel):
    browser.evaluate(f"at('kernel').value = {kernel!r}; at('kernel').onchange()")


def test_stepper_shows_what_the_simulator_recorded():
    if not SIMULATED:
        pytest.skip("the steps are recorded in the simulator")
    assert STEPPER.read_text(encoding="utf-8") == load_script(BOOK / "figures" / "warp_stepper.py").page()


def test_stepper_goes_forward_and_back(browser):
    browser.open(STEPPER)
    choose(browser, "add two arrays of 20")
    assert browser.evaluate("at('place').textContent") == "step 1 of 3"
    assert browser.evaluate("at('back').disabled") is True
    assert browser.evaluate("document.querySelectorAll('.lane.off').length") == 12
    browser.evaluate("at('next').click(); at('next').click()")
    assert browser.evaluate("at('next').disabled") is True
    assert browser.evaluate("at('summary').textContent").startswith("store to out_N: 80 bytes asked for, 3 sectors")
    browser.evaluate("at('back').click()")
    assert browser.evaluate("at('place').textContent") == "step 2 of 3"
    assert browser.problems() == []


def test_stepper_shows_what_runs_and_neighbours_cost(browser):
    browser.open(STEPPER)
    for kernel, n_sectors, n_wasted in (("a run for each lane", 32, 224), ("neighbours", 4, 0)):
        choose(browser, f"copy 1,024: {kernel}")
        assert browser.evaluate("at('sectors').children.length") == n_sectors
        assert browser.evaluate("document.querySelectorAll('.wasted').length") == n_wasted
        assert "out_N[" in browser.evaluate("document.querySelector('.now').textContent")


def fill(browser, **fields):
    for name, value in fields.items():
        browser.evaluate(f"at('{name}').value = {value!r}; at('{name}').dispatchEvent(new Event('input'))")


def test_calculator_is_what_its_script_writes():
    assert CALCULATOR.read_text(encoding="utf-8") == load_script(BOOK / "figures" / "run_cost.py").page()


def test_calculator_agrees_with_the_original_run(browser):
    browser.open(CALCULATOR)
    fill(browser, mfu="59", price="1.75")  # 56 % of what 8 A100 promise is 59 % of 0.95 times that
    answer = browser.evaluate("at('answer').textContent")
    token_flop = 6 * 124_475_904 + 6 * 12 * 768 * 1024
    hours = token_flop * 9.8907e9 / (8 * 0.95 * 312e12 * 0.59) / 3600
    assert answer == f"{hours:.2f} hours, about ${hours * 14:.1f}"
    assert "18,865" in browser.evaluate("at('sums').innerText")
    assert browser.problems() == []


def test_calculator_follows_its_fields(browser):
    browser.open(CALCULATOR)
    browser.evaluate("at('gpu').value = 'H100'; at('gpu').onchange()")
    assert browser.evaluate("at('price').value") == "3.5"
    dollars = browser.evaluate("at('answer').textContent").split("$")[1]
    fill(browser, count="16")
    assert browser.evaluate("at('answer').textContent").split("$")[1] == dollars  # twice the GPUs, half of the time
    browser.evaluate("at('model').value = '1558M'; at('model').onchange()")
    assert browser.evaluate("at('tokens').value") == "33.6"
    fill(browser, count="0")
    assert browser.evaluate("at('answer').textContent") == "fill in every field"


PLACES = [("04_first_kernels", "#kernel", 6), ("00_intro", "#model", 4)]


@pytest.mark.parametrize(("page", "choice", "n_options"), PLACES)
def test_figure_is_on_its_page(browser, page, choice, n_options):
    browser.open(BOOK.parent / "_build" / "html" / f"{page}.html")
    browser.evaluate("document.querySelector('iframe').scrollIntoView()")
    loaded = f"document.querySelector('iframe').contentDocument.querySelector('{choice}').options.length"
    assert browser.evaluate(loaded) == n_options
