"""The page of the API, /docs, in a real browser."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.test_chat_use import axe_script, serious

pytestmark = pytest.mark.slow

CUT_WORDS = """() => {
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), cut = [];
  for (let node; (node = walker.nextNode());) {
    if (node.parentElement.closest("pre, textarea")) continue; // these scroll
    for (const word of node.data.matchAll(/[A-Za-z0-9_]+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(place => Math.round(place.top)));
      if (lines.size > 1) cut.push(word[0]);
    }
  }
  return cut;
}"""
"""Words that go on in the next line."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone(visit: Open, tmp_path: Path, scheme: str) -> None:
    page = visit("/docs", width=390, scheme=scheme, bypass_csp=True)  # axe is a script of our own
    page.screenshot(path=tmp_path / "closed.png")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.screenshot(path=tmp_path / "open.png")
    assert page.evaluate(CUT_WORDS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert serious(page, axe_script()) == []


def test_an_example_is_shown_and_can_be_sent(visit: Open) -> None:
    page = visit("/docs", width=390)
    chat = page.locator("#post_v1_chat_completions")
    chat.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(chat.get_by_label("curl command")).to_contain_text(
        f"curl {page.url.removesuffix('docs')}v1/chat/completions"
    )
    expect(chat.get_by_label("Example of a response")).to_contain_text('"reasoning_content"')
    chat.get_by_role("button", name="Try it").click()
    expect(chat.get_by_role("status")).to_have_text(re.compile(r"^200 OK, \d+\.\d\d s$"))
    expect(chat.get_by_label("Answer")).to_contain_text("27+48=75")
    body = chat.get_by_role("textbox")
    body.fill(body.input_value().replace("{", '{"stream": true,', 1))
    chat.get_by_role("button", name="Try it").click()
    expect(chat.get_by_label("Answer")).to_contain_text("data: [DONE]")
    model = page.locator("#get_v1_models_name")
    model.locator("summary").click()
    model.get_by_label("name").fill("no/such")
    model.get_by_role("button", name="Try it").click()
    expect(model.get_by_role("status")).to_have_text(re.compile("^404"))
    expect(model.get_by_label("Answer")).to_contain_text("model_not_found")
