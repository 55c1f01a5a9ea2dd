"""The chat page in a real browser: its use by a newcomer, and failures during an answer."""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from cluster.client import metrics
from deployments.pages.client import Progress
from deployments.pages.conversation import Answer, Conversation, Turn
from tests.browser.conftest import Open
from tests.conftest import MODEL, RABBITS, Dray, wait_for
from tests.slowly import slowed

pytestmark = pytest.mark.slow


def new_sum() -> tuple[str, str]:
    """A question that no test has asked before, and its answer."""
    first, second = random.randint(100, 999), random.randint(100, 999)
    return f"What is {first} + {second}?", str(first + second)


def field(page: Page) -> Locator:
    return page.locator("#question textarea")


def ask(page: Page, question: str) -> None:
    field(page).fill(question)
    field(page).press("Enter")


def last(page: Page) -> Locator:
    """The whole answer to the last question."""
    return page.locator(".bot.message").last


def line(page: Page) -> Locator:
    """The line under the last answer."""
    return last(page).locator("small").last


def reopen(page: Page, question: str, text: str, thinking: str = "") -> None:
    """Loads the page again, with a conversation that the browser keeps."""
    answer = Answer("m", Progress(thinking, text, finish="stop", first_s=0.1, tokens=9))
    kept = {"at": 1, "value": Conversation("kept", (Turn(question, (answer,)),)).json()}
    page.evaluate("kept => localStorage.setItem('dray:conversation:kept', JSON.stringify(kept))", kept)
    page.evaluate("sessionStorage.setItem('dray:open', 'kept')")
    page.reload()
    expect(page.locator(".user.message")).to_have_count(1)


def engine_pid(dray: Dray) -> int:
    return int(dray.status()["replicas"][0]["engine_pid"])


def running(dray: Dray) -> float:
    return sum(value for _, value in metrics(dray.url)["dray_engine_running"])


def disconnects(dray: Dray) -> float:
    """The number of requests whose client disconnected before the answer was complete."""
    samples = metrics(dray.url).get("dray_requests_total", [])
    return sum(value for labels, value in samples if labels["status"] == "499")


def kill(dray: Dray, deployment: str) -> None:
    """Kills the replica of a deployment; Serve starts another."""
    [replica] = dray.processes(f"ray::ServeReplica:{deployment}")
    replica.kill()
    replica.wait(5)


@contextmanager
def thinking(page: Page, shown: Dray, question: str) -> Iterator[None]:
    """Asks an engine that is slowed down, so that the block runs while the model is thinking."""
    with slowed(engine_pid(shown)):
        ask(page, question)
        expect(page.get_by_text("Thinking", exact=True)).to_be_visible()
        yield


def test_an_example_shows_thinking_and_then_the_answer(visit: Open, shown: Dray) -> None:
    page = visit("/chat", locale="zh-CN")
    expect(field(page)).to_have_attribute("placeholder", "请输入问题")
    expect(page.get_by_label("模型")).to_have_value(MODEL)
    [replica] = shown.status()["replicas"]
    thoughts = page.locator(".thought-group .message-content")
    with slowed(replica["engine_pid"]):
        page.get_by_text(RABBITS).click()
        expect(page.get_by_text("思考中")).to_be_visible()
        early = thoughts.inner_text()
        wait_for(lambda: len(thoughts.inner_text()) > len(early) > 0, 10)
    expect(line(page)).to_be_visible()
    expect(page.get_by_text("思考过程")).to_be_visible()
    expect(thoughts).not_to_be_visible()
    expect(last(page)).to_contain_text("23")
    expect(last(page)).to_contain_text("12")
    stats = (
        rf"\d+ 个 token（思考 \d+ 个） · \d+ token/秒 · 首个 token 用时 [\d.]+ 秒 · 新生成 · 副本 {replica['replica']}"
    )
    expect(line(page)).to_have_text(re.compile(stats))
    page.get_by_text("思考过程").click()
    expect(thoughts).to_be_visible()


def test_stop_ends_the_generation_and_retry_answers(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    question, answer = new_sum()
    with thinking(page, shown, question):
        page.get_by_role("button", name="Stop").click()
        expect(last(page)).to_contain_text("stopped")
        expect(page.get_by_text("Thinking", exact=True)).not_to_be_visible()
    wait_for(lambda: running(shown) == 0, 5)
    page.get_by_role("button", name="Retry").click()
    expect(line(page)).to_contain_text("generated now")
    expect(line(page)).to_contain_text("answer 2 of 2")
    expect(last(page)).to_contain_text(answer)
    page.get_by_role("button", name="Retry").click()
    expect(line(page)).to_contain_text("answer 3 of 3")
    expect(line(page)).to_contain_text("generated now")
    expect(last(page)).to_contain_text(answer)
    expect(page.locator(".user.message")).to_have_count(1)
    page.get_by_role("button", name="Previous answer").click()
    expect(line(page)).to_contain_text("answer 2 of 3")
    page.get_by_role("button", name="Previous answer").click()
    expect(line(page)).to_contain_text("stopped · answer 1 of 3")
    page.get_by_role("button", name="Next answer").click()
    expect(line(page)).to_contain_text("answer 2 of 3")
    expect(last(page)).to_contain_text(answer)


def test_closing_the_page_ends_the_generation(visit: Open, shown: Dray) -> None:
    page, before = visit("/chat"), disconnects(shown)
    with thinking(page, shown, new_sum()[0]):
        page.close()
        wait_for(lambda: disconnects(shown) == before + 1, 10)
    wait_for(lambda: running(shown) == 0, 5)


def test_code_and_formulas_are_rendered(visit: Open) -> None:
    page = visit("/chat")
    ask(page, "写一个Python函数判断回文字符串")
    expect(last(page).locator("pre code .keyword", has_text="def")).to_be_visible()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    last(page).get_by_title("copy").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('def '))")
    formulas = r"\(a^2\) and \[\frac{1}{2}\] and $$x$$"
    reopen(page, formulas, f"{formulas} for $5 and $10\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    expect(last(page).locator(".katex")).to_have_count(3)
    expect(last(page)).to_contain_text("for $5 and $10")
    expect(last(page).locator("td")).to_have_text(["1", "2"])
    assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Main'))")
    expect(page.locator(".user.message")).to_have_text(formulas)
    expect(page.locator(".user.message .katex")).to_have_count(0)


def test_the_page_works_with_the_keyboard_alone(visit: Open) -> None:
    page = visit("/chat")
    expect(field(page)).to_be_focused()
    question, answer = new_sum()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    expect(line(page)).to_be_visible()
    expect(last(page)).to_contain_text(answer)
    reached = set()
    wanted = {
        "Model",
        "Retry",
        "Settings",
        "New conversation",
        "Search conversations",
        "Rename",
        "Edit",
        "Like",
        "Thought",
    }
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(e => (e.ariaLabel || e.innerText).split('\\n')[0])(document.activeElement)"))
        if reached >= wanted:
            return
    raise AssertionError(f"Tab reaches only {reached}")


def test_the_settings_are_used(visit: Open) -> None:
    page = visit("/chat")
    page.get_by_role("button", name="Settings").click()
    limit = page.get_by_role("spinbutton", name="Maximum tokens")
    expect(page.get_by_role("spinbutton", name="Temperature")).to_have_value("0")
    expect(limit).to_have_value("2048")
    page.get_by_role("spinbutton", name="Maximum tokens").fill("8")
    page.get_by_role("spinbutton", name="Temperature").fill("0.5")
    expect(page.get_by_text("Includes the thinking. Default: 2048")).to_be_visible()
    ask(page, new_sum()[0])
    expect(line(page)).to_contain_text("8 tokens")
    expect(line(page)).to_contain_text("cut off at the token limit")
    expect(last(page).get_by_role("status")).to_contain_text("all 8 tokens went into the thinking")
    page.get_by_role("spinbutton", name="Temperature").fill("0")
    page.get_by_role("spinbutton", name="Maximum tokens").fill("")
    question, answer = new_sum()
    ask(page, question)
    expect(page.locator(".bot.message")).to_have_count(2)
    expect(last(page)).to_contain_text(answer)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_every_window(visit: Open, tmp_path: Path, width: int, scheme: str) -> None:
    page = visit("/chat", width=width, scheme=scheme)
    expect(page.locator(".example")).to_have_count(4)
    for example in page.locator(".example").all():
        expect(example).to_be_in_viewport()
    expect(page.get_by_role("heading", name="What would you like")).to_be_in_viewport(ratio=1)
    page.get_by_text("Write a Python function").click()
    expect(line(page)).to_be_visible()
    page.screenshot(path=tmp_path / "chat.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(field(page)).to_be_in_viewport(ratio=1)
    dark, light = "rgb(0, 0, 0)", "rgb(255, 255, 255)"
    ground = page.evaluate("getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
    assert ground != (light if scheme == "dark" else dark)


def test_a_router_that_dies_and_comes_back(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    question, answer = new_sum()
    with thinking(page, shown, question):
        kill(shown, "dray:router")
        expect(last(page)).to_contain_text("connection was lost")
    page.get_by_role("button", name="Retry").click()
    expect(last(page)).to_contain_text(answer, timeout=30_000)


def test_a_chat_page_that_dies_and_comes_back(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    expect(page.get_by_label("Model")).to_have_value(MODEL)
    kill(shown, "page:page")
    question, answer = new_sum()
    ask(page, question)
    expect(last(page)).to_contain_text(answer, timeout=30_000)


def test_with_keys_the_page_requires_one(visit: Open, shown: Dray) -> None:
    before = visit("/chat")
    expect(before.get_by_label("Model")).to_have_value(MODEL)
    expect(before.get_by_label("API key", exact=True)).not_to_be_visible()
    assert shown.run("teams", "add", "readers").returncode == 0
    key = json.loads(shown.run("keys", "create", "readers", "--json").stdout)
    wait_for(lambda: httpx.get(f"{shown.url}/models").status_code == 401, 5)
    question, answer = new_sum()
    ask(before, question)
    expect(last(before)).to_contain_text("API key is required")
    before.get_by_label("API key", exact=True).fill("dray-wrong")
    ask(before, question)
    expect(last(before)).to_contain_text("Invalid API key")
    before.get_by_label("API key", exact=True).fill(key["key"])
    ask(before, question)
    expect(last(before)).to_contain_text(answer)
    after = visit("/chat")
    after.get_by_label("API key", exact=True).fill(key["key"])
    after.get_by_label("API key", exact=True).press("Enter")
    expect(after.get_by_label("Model")).to_have_value(MODEL)
    after.reload()
    expect(after.get_by_label("API key", exact=True)).to_have_value(key["key"])
    expect(after.get_by_label("Model")).to_have_value(MODEL)
    after.get_by_role("link", name="Status").click()
    expect(after.locator("#replicas")).to_be_visible()
    after.go_back()
    expect(after.get_by_label("API key", exact=True)).to_have_value(key["key"])
    expect(after.get_by_label("Model")).to_have_value(MODEL)
    assert shown.run("keys", "revoke", key["id"]).returncode == 0
    ask(after, question)
    expect(last(after)).to_contain_text("Invalid API key")
    assert shown.run("teams", "remove", "readers").returncode == 0
    assert shown.run("keys", "disable", "--yes").returncode == 0
    wait_for(lambda: httpx.get(f"{shown.url}/models").status_code == 200, 5)


def test_nothing_is_cut_or_covered_on_a_phone(visit: Open) -> None:
    page = visit("/chat", width=390)
    heading, chat = page.get_by_role("heading", name="What would you like"), page.locator("#chat")
    expect(heading).to_be_in_viewport(ratio=1)
    greeting = heading.bounding_box()
    frame = chat.bounding_box()
    assert greeting is not None and frame is not None
    assert frame["x"] + 8 <= greeting["x"] and greeting["x"] + greeting["width"] <= frame["x"] + frame["width"] - 8
    code = "```python\n# a comment that is longer than a phone is wide, so that the block scrolls\n```"
    reopen(
        page,
        "Show it",
        f"{code}\n\n| name | a long heading | third | fourth |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |" * 3,
    )
    lines = (
        "th => { const all = document.createRange(); all.selectNodeContents(th); return all.getClientRects().length; }"
    )
    assert last(page).locator("th", has_text="name").first.evaluate(lines) == 1
    button = last(page).get_by_title("copy").first.bounding_box()
    first = last(page).locator("pre code .comment").first.bounding_box()
    assert button is not None and first is not None and button["y"] + button["height"] <= first["y"] + 2
    script = """() => {
      document.querySelector("#chat .bubble-wrap").scrollTop = 0;
      const place = document.querySelector("#chat .scroll-down-button-container button")?.getBoundingClientRect();
      return place && [place.x + place.width / 2, place.y + place.height / 2];
    }"""
    down = wait_for(lambda: page.evaluate(script))
    page.get_by_role("button", name="Show or hide the conversations").click()
    expect(page.get_by_role("button", name="New conversation")).to_be_in_viewport()
    above = "([x, y]) => Boolean(document.elementFromPoint(x, y).closest('.sidebar'))"
    wait_for(lambda: page.evaluate(above, down))


@pytest.mark.parametrize("width", [768, 1024])
def test_settings_show_what_is_chosen(visit: Open, width: int) -> None:
    page = visit("/chat", width=width)
    page.get_by_role("button", name="Settings").click()
    preset = page.get_by_role("combobox", name="Instructions for")
    expect(preset).to_have_value("No instructions")
    assert preset.evaluate("field => field.scrollWidth <= field.clientWidth")
