"""The tab Chat, in Chromium, with a server that answers by heart."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.serving.page.conftest import Visit, answers, say, until
from tests.serving.page.stub import BASE, Stub, running

HTML = '<img src="x" onerror="window.hit = 1"><b>bold</b>'


# of the controls that are seen, those without a name
UNNAMED = """[...document.querySelectorAll("button, input, select, textarea")].filter(e => e.checkVisibility()
   && !(e.getAttribute("aria-label") || e.innerText?.trim() || e.labels?.[0]?.innerText.trim()))
   .map(e => e.outerHTML)"""


def turns(text: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def test_each_side_has_its_own_conversation(stub: Stub, url: str, visit: Visit) -> None:
    page = visit(url)
    page.locator("#chat-settings summary").click()
    page.fill("#system", "Be kind.")
    page.fill("#max-tokens", "9")
    say(page, "first")
    assert answers(page) == [f"I am {BASE}", "I am emoji"]
    page.fill("#strength-number", "-0.5")
    say(page, "second")
    assert page.locator(".turn").nth(1).locator(".chip").inner_text() == "strength -0.5"
    asked = {body["model"]: body for body in stub.chats[2:]}
    system, now = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "second"}
    for model, strength in ((BASE, None), ("emoji", -0.5)):
        assert asked[model]["messages"] == [system, *turns("first", f"I am {model}"), now]
        assert asked[model].get("reft_strength") == strength and asked[model]["max_tokens"] == 9
    # the adapter's prompt with what it edits: the last word
    page.locator(".seen summary").last.click()
    assert page.locator(".turn").last.locator(".tokens .mark").inner_text().startswith("second")
    assert "1 of" in page.locator(".seen summary").last.inner_text()
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0


@pytest.mark.slow
def test_stop_ends_both_answers_and_keeps_what_is_there(stub: Stub, url: str, visit: Visit) -> None:
    stub.holds = True
    page = visit(url)
    page.fill("#prompt", "go")
    page.click("#ask")
    until(page, "[...document.querySelectorAll('.words')].every(box => box.innerText.trim() === 'I')")
    page.click("#stop")
    page.locator("#ask").wait_for()
    assert page.locator(".turn .outcome").all_inner_texts() == ["Stopped.", "Stopped."]
    assert answers(page) == ["I", "I"]


@pytest.mark.slow
def test_a_reload_loses_nothing(url: str, visit: Visit) -> None:
    page = visit(url)
    page.locator("#chat-settings summary").click()
    page.fill("#system", "Be brief.")
    page.fill("#strength-number", "1.5")
    say(page, "hello")
    page.fill("#prompt", "half a sentence")
    page.reload()
    assert page.input_value("#prompt") == "half a sentence" and page.input_value("#system") == "Be brief."
    assert page.input_value("#strength") == page.input_value("#strength-number") == "1.5"
    assert answers(page) == [f"I am {BASE}", "I am emoji"]


@pytest.mark.slow
def test_markup_and_refusals_are_shown_as_text(stub: Stub, url: str, visit: Visit) -> None:
    stub.answers = {BASE: f"{HTML} [no](javascript:hit=1) ![far](http://x.test/y.png)"}
    stub.serve(HTML, job=None)
    page = visit(url)
    page.select_option("#adapter", HTML)
    del stub.adapters[HTML]
    say(page, HTML)
    base, adapter = page.locator(".turn").last.locator(".answer").all()
    assert base.locator(".words").inner_text() == f"{HTML} [no](javascript:hit=1) far"
    assert adapter.locator(".outcome").inner_text() == f"the model {HTML!r} does not exist"
    assert page.locator("main :is(img, b, script)").count() == 0 and page.evaluate("window.hit") is None
    assert page.locator(".words a").get_attribute("href") == "http://x.test/y.png"


@pytest.mark.slow
def test_the_key_is_asked_for_and_kept_in_the_tab(visit: Visit) -> None:
    with running(Stub(key="s3cret")) as url:
        page = visit(url)
        for key in ("wrong", "s3cret"):
            page.fill("#lock-key", key)
            page.press("#lock-key", "Enter")
            if key == "wrong":
                page.get_by_text("That key is not right.").wait_for()
        page.get_by_text(f"{BASE} · 1 adapter").wait_for()
        say(page, "hello")
        assert answers(page)[0] == f"I am {BASE}"
        page.reload()
        page.get_by_text(f"{BASE} · 1 adapter").wait_for()
        assert not page.locator("#lock").is_visible()


@pytest.mark.slow
def test_a_server_that_does_not_train_says_how_to_switch_it_on(visit: Visit) -> None:
    with running(Stub(trains=False)) as url:
        page = visit(url)
        say(page, "hello")
        assert answers(page) == [f"I am {BASE}", "I am emoji"]
        for tab in ("train", "adapters"):
            page.click(f"#tab-{tab}")
            assert "--fine-tuning FOLDER" in page.locator(f"#panel-{tab} .off").inner_text()
        assert not page.locator("#teach").is_visible()
        assert page.locator(".card h2").all_inner_texts() == ["emoji"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone_and_names_its_controls(stub: Stub, url: str, visit: Visit, scheme: str) -> None:
    stub.answers = {BASE: "a" * 300 + "\n\n```\n" + "b" * 300 + "\n```\n\n|a|b|\n|-|-|\n|" + "c" * 200 + "|d|"}
    stub.serve("ft:" + "x" * 120, job="j", filename="y" * 90)
    page = visit(url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    say(page, "z" * 200)
    page.locator(".seen summary").click()
    page.click("#tab-train")
    page.fill("#paste-text", "w" * 200 + "\t" + "v" * 200)
    page.click("#paste-add")
    page.click("#show-tokens")
    page.locator(".preview .tokens").wait_for()
    page.locator("#teach-settings summary").click()
    for tab in ("train", "adapters", "chat"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") == 360, tab
        assert page.evaluate(UNNAMED) == [], tab
    paper, ink = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("backgroundColor", "color")
    )
    assert (paper > ink) == (scheme == "light")


# --- Markdown ---------------------------------------------------------------------------------------------------------

RENDERED = {
    "plain": "<p>plain</p>",
    "a *b* **c** ***d*** `e*f*` ~~g~~": (
        "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <code>e*f*</code> <del>g</del></p>"
    ),
    "**a *b***": "<p><strong>a <em>b</em></strong></p>",
    "2 * 3 * 4, snake_case_name, a*b": "<p>2 * 3 * 4, snake_case_name, a*b</p>",
    r"\*no\*": "<p>*no*</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# Top\n### Low": "<h3>Top</h3><h5>Low</h5>",
    "- a\n- b\n  - c\n\nend": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>end</p>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   b\n2. c": "<ol><li>a<p>b</p></li><li>c</li></ol>",
    "> a\n> b": "<blockquote><p>a<br>b</p></blockquote>",
    "***": "<hr>",
    "<b>&amp;</b>": "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>",
    "[a](https://b.test/c?d=1)": (
        '<p><a href="https://b.test/c?d=1" target="_blank" rel="noopener noreferrer">a</a></p>'
    ),
    "see https://b.test/c.": (
        '<p>see <a href="https://b.test/c" target="_blank" rel="noopener noreferrer">https://b.test/c</a>.</p>'
    ),
    "[a](javascript:b) [c](data:d) [e](/f)": "<p>[a](javascript:b) [c](data:d) [e](/f)</p>",
    "```py\n<i>\n  x\n```\nafter": (
        '<pre tabindex="0" aria-label="Code, py"><code>&lt;i&gt;\n  x</code></pre><p>after</p>'
    ),
    "```\nstill growing": '<pre tabindex="0" aria-label="Code"><code>still growing</code></pre>',
    "|a|b|\n|--|:-:|\n|c|d|": (
        '<div class="scrolls" tabindex="0" role="region" aria-label="Table"><table><thead><tr><th>a</th><th>b</th></tr>'
        "</thead><tbody><tr><td>c</td><td>d</td></tr></tbody></table></div>"
    ),
}
# Each in many copies is what makes careless readers of Markdown slow.
HOSTILE = (
    "*a ",
    "**a",
    "_a",
    "`",
    "``a`",
    "[",
    "[a](",
    "![",
    "> ",
    "- ",
    "1. \n",
    "|",
    "a|\n-|",
    "~~a",
    "\\",
    "http://",
)


def rendered(page: Any, text: str) -> str:
    return page.evaluate(
        """async text => { const box = document.createElement("div");
           box.append((await import("/ui/markdown.js")).markdown(text)); return box.innerHTML; }""",
        text,
    )


@pytest.mark.slow
def test_markdown(url: str, visit: Visit) -> None:
    page = visit(url)
    assert {text: rendered(page, text) for text in RENDERED} == RENDERED
    # the quickest of what is harmless is far below, what grows with the square far above
    slow = page.evaluate(
        """async texts => { const { markdown } = await import("/ui/markdown.js");
           return texts.filter(text => { const began = performance.now(); markdown(text.repeat(30000 / text.length));
             return performance.now() - began > 1500; }); }""",
        HOSTILE,
    )
    assert slow == []
