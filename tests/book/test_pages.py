"""The built pages in a browser: maths set without a network, no errors, nothing wider than the window, no dead link.

Screenshots of each page, wide, narrow and dark, are left in `_build/screenshots` to be looked at.
"""

import html.parser
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser
from chapters import BOOK, HTML, ROOT, pages, read

NARROW, WIDE = 400, 1200
SCREENSHOTS = ROOT / "_build" / "screenshots"
ALL_PAGES = pages()
every_page = pytest.mark.parametrize("page", ALL_PAGES)
# What is wider than the window and cannot be scrolled within the page
OVERFLOW = """(() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width + 1) return [];
    const wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > width + 1);
    return ['page is ' + document.documentElement.scrollWidth, ...wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120))];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert (HTML / "index.html").is_file(), "build the book first: make book"
    opened = Browser(tmp_path_factory.mktemp("profile"))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    yield opened
    opened.close()


def source(page):
    """Return a page's prose as it was written."""
    notebook = BOOK / f"{page}.ipynb"
    if notebook.is_file():
        return "\n".join(cell.source for cell in read(notebook).cells if cell.cell_type == "markdown")
    return (BOOK / f"{page}.md").read_text(encoding="utf-8")


@every_page
def test_page(browser, page):
    browser.resize(WIDE)
    browser.open(HTML / f"{page}.html")
    n_formulas = browser.evaluate("document.querySelectorAll('mjx-container').length")
    assert (n_formulas > 0) == ("$" in source(page))
    assert browser.evaluate("document.querySelectorAll('mjx-merror, .problematic').length") == 0
    assert browser.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)") == []
    browser.screenshot(SCREENSHOTS / f"{page}-wide.png")
    browser.evaluate("document.documentElement.dataset.theme = 'dark'")
    browser.screenshot(SCREENSHOTS / f"{page}-dark.png")
    browser.evaluate("document.documentElement.dataset.theme = 'light'")
    browser.resize(NARROW)
    browser.screenshot(SCREENSHOTS / f"{page}-narrow.png")
    assert browser.evaluate(OVERFLOW) == []
    assert browser.problems() == []


class Links(html.parser.HTMLParser):
    """The targets of a page's links and the places that can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.places = [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.places.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.targets.append(attributes["href"])


@pytest.fixture(scope="module")
def links():
    return {path.name: Links(path.read_text(encoding="utf-8")) for path in HTML.glob("*.html")}


@every_page
def test_internal_links_lead_somewhere(links, page):
    for target in links[f"{page}.html"].targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        name = unquote(parts.path) or f"{page}.html"
        assert (HTML / name).is_file(), target
        if name in links:
            assert unquote(parts.fragment) in links[name].places, target


@every_page
def test_every_link_to_a_host_is_one_that_was_written(links, page):
    """No button leads to a repository that nobody named."""
    allowed = source(page) + (BOOK / "references.bib").read_text(encoding="utf-8")
    for target in links[f"{page}.html"].targets:
        if urlsplit(target).netloc:
            host = urlsplit(target).netloc
            assert host in allowed or host in ("jupyterbook.org", "pydata-sphinx-theme.readthedocs.io"), target
