"""The interactive figures, driven as a reader would drive them."""

import pytest
from browser import Browser
from chapters import BOOK, load_script

from kernels import SIMULATED

STEPPER = BOOK / "_static" / "warp_stepper.html"


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


def test_stepper_is_on_its_page(browser):
    browser.open(BOOK.parent / "_build" / "html" / "04_first_kernels.html")
    browser.evaluate("document.querySelector('iframe').scrollIntoView()")
    loaded = "document.querySelector('iframe').contentDocument.querySelector('#kernel').options.length"
    assert browser.evaluate(loaded) == 6
