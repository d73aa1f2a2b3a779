"""The page of fourteen methods as people see it: Chromium, wide and as narrow as a phone, light and dark.

Must not know: how the page is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reftune.comparison.report import write_report
from tests.comparison.report.fakes import METHODS, TASKS, fake_results

pytestmark = pytest.mark.slow

# Pairs of labels of a picture that lie over one another by more than the rounding of a letter's box.
OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const groups = [...svg.querySelectorAll('g')].filter(g => g.querySelector(':scope > text'));
  const boxes = groups.map(g => [g.textContent.trim(), g.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.35 * Math.min(a.height, b.height)
  ).map(([other]) => [svg.getAttribute('aria-label'), one, other]));
})"""
# Labels that reach out of their picture.
OUTSIDE = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const all = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < all.left - 1 || box.right > all.right + 1;
  }).map(text => text.textContent);
})"""
# Height of the smallest letters, also of those that go up the side.
SMALLEST = """() => Math.min(...[...document.querySelectorAll('svg text')].map(text =>
  parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b)))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(fake_results(), tmp_path_factory.mktemp("report"))[1]


@pytest.fixture(params=[(1280, "light"), (360, "dark")], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    width, scheme = request.param
    found = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found.asked, found.said = [], []
    found.on("request", lambda asked: found.asked.append(asked.url))
    found.on("console", lambda said: found.said.append(said.text))
    found.on("pageerror", lambda error: found.said.append(str(error)))
    found.goto(report.as_uri())
    yield found
    found.close()


def test_only_the_file_itself_is_asked_for(page: Any, report: Path) -> None:
    assert page.asked == [report.as_uri()]
    assert page.said == []


def test_the_page_is_never_wider_than_the_screen(page: Any) -> None:
    # tables and code scroll in themselves; what is folded is opened first
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_pictures_can_be_read(page: Any) -> None:
    assert page.locator("svg").count() == 2 * (1 + len(TASKS)) + 2 * len(TASKS)
    # some lie in folds
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(SMALLEST) >= 7
    labels = page.locator("svg").first.text_content()
    assert all(label.replace(" ", "") in "".join(labels.split()) for method, label, *_ in METHODS if method != "base")


def test_the_colours_follow_the_reader(page: Any, request: pytest.FixtureRequest) -> None:
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    of_text = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")

    def light(colour: str) -> float:
        return sum(int(part) for part in colour[4:-1].split(",")) / 765

    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (light(paper) < 0.2) == dark and abs(light(ink) - light(paper)) > 0.6
    assert of_text == ink
