"""The chat page as it is used every day: what it keeps, what a keyboard does, and what its buttons do."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.browser.test_chat import ask, field, last, line, new_sum, reopen, thinking
from tests.conftest import MODEL, Dray, wait_for

pytestmark = pytest.mark.slow


def questions(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".user.message").all_inner_texts()]


def axe_script() -> str:
    """axe-core, from a folder that AXE_CORE names or from the package axe-core-python."""
    folder = os.environ.get("AXE_CORE")
    if not folder and (package := find_spec("axe_core_python")) and package.origin:
        folder = str(Path(package.origin).parent)
    if not folder:
        pytest.skip("no axe-core: pip install axe-core-python, or AXE_CORE=FOLDER with its axe.min.js")
    return (Path(folder) / "axe.min.js").read_text()


def serious(page: Page, axe: str) -> list[str]:
    """What axe finds serious or critical, with the elements."""
    script = "axe => { (0, eval)(axe); return window.axe.run().then(found => found.violations); }"
    # Colours are measured where they stand, not on their way.
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    found = page.evaluate(script, axe)
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def without_focus_ring(page: Page) -> list[str]:
    """Fields that do not show that they have the focus."""
    script = """() => {
      const all = [...document.querySelectorAll("input:not([type=checkbox], [type=file]), textarea")];
      return all.filter(one => one.checkVisibility()).filter(one => {
        one.focus();
        return document.activeElement !== one || getComputedStyle(one).outlineStyle === "none";
      }).map(one => one.ariaLabel || one.placeholder || one.outerHTML);
    }"""
    missing: list[str] = page.evaluate(script)
    return missing


WORDS = re.compile(r"[A-Za-z]{2,}")
NAMES = {
    *("Dray", "API", "English", "Markdown", "Python", "Redis", "token", "Token", "Top", "KV", "ID", "HTTP"),
    *("txt", "md", "pdf", "docx", "dray", "demo", "auto", "keys", "create", "admin"),
}
"""What is the same in Chinese."""


def untranslated(page: Page, except_in: str) -> set[str]:
    """Words of the page's own texts and names that are English. except_in: where people and models have their say."""
    script = """except => {
      const apart = `script, style, ${except}`, names = ["aria-label", "title", "placeholder"];
      const all = [...document.querySelectorAll("body *")];
      const shown = all.filter(one => !one.closest(apart) && one.checkVisibility());
      const text = one => [...one.childNodes].filter(node => node.nodeType === Node.TEXT_NODE).map(node => node.data);
      return shown.flatMap(one => [...text(one), ...names.map(name => one.getAttribute(name) || "")]);
    }"""
    return {word for text in page.evaluate(script, except_in) for word in WORDS.findall(text)} - NAMES


def test_a_chinese_page_has_no_english_words(visit: Open) -> None:
    page = visit("/chat", locale="zh-CN")
    expect(page.locator(".example")).to_have_count(4)
    page.get_by_role("button", name="设置").click()
    expect(page.get_by_label("随机种子")).to_be_visible()
    assert untranslated(page, "pre") == set()
    ask(page, new_sum()[0])
    expect(line(page)).to_contain_text("副本")
    page.get_by_role("button", name="踩").click()
    expect(page.get_by_role("button", name="已踩")).to_be_visible()
    assert untranslated(page, "#chat .message-row, .dray-list li") == set()
    page.get_by_role("link", name="状态").click()
    expect(page.get_by_role("row")).to_have_count(2)
    assert untranslated(page, "td, [title]") == set()


def test_the_bare_address_leads_to_a_page_with_a_title_and_links(visit: Open, shown: Dray) -> None:
    page = visit("/")
    expect(page).to_have_url(re.compile(f"^{shown.root}/chat"))
    for link in ("Status", "Chat", "Console", "Status", "Console", "Chat"):
        page.get_by_role("link", name=link).click()
        expect(page).to_have_url(re.compile(f"/{link.lower()}/?([?#].*)?$"))
        expect(page.locator("h1")).to_have_text(["Dray"])
        expect(page.locator("link[rel=icon]")).to_have_count(1)
    expect(field(page)).to_be_visible()
    page.get_by_role("link", name="API", exact=True).click()
    expect(page.locator("h1")).to_have_count(1)
    expect(page.locator("link[rel=icon]")).to_have_count(1)
    page.get_by_role("link", name="Start page").click()
    expect(field(page)).to_be_visible()


def test_reload_back_and_the_status_page_lose_nothing(visit: Open) -> None:
    page = visit("/chat")
    question, answer = new_sum()
    ask(page, question)
    expect(line(page)).to_contain_text("generated now")
    model = page.get_by_label("Model", exact=True)
    model.click()
    page.get_by_role("option", name="auto").click()
    expect(model).to_have_value("auto")
    page.get_by_role("button", name="Settings").click()
    effort = page.get_by_role("combobox", name="Thinking")
    effort.click()
    page.get_by_role("option", name="Short").click()
    page.get_by_role("spinbutton", name="Temperature").fill("0.3")
    page.get_by_role("spinbutton", name="Top-p").fill("0.85")
    page.get_by_role("spinbutton", name="Maximum tokens").fill("777")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("System prompt").blur()
    kept = "() => (JSON.parse(localStorage.getItem('dray:fields')) || {}).system === 'Be brief.'"
    page.wait_for_function(kept)

    def unchanged() -> None:
        expect(last(page)).to_contain_text(answer)
        assert questions(page) == [question]
        expect(model).to_have_value("auto")
        page.get_by_role("button", name="Settings").click()
        expect(effort).to_have_value(re.compile("^Short"))
        expect(page.get_by_role("spinbutton", name="Temperature")).to_have_value("0.3")
        expect(page.get_by_role("spinbutton", name="Top-p")).to_have_value("0.85")
        expect(page.get_by_role("spinbutton", name="Maximum tokens")).to_have_value("777")
        expect(page.get_by_label("Seed")).to_have_value("5")
        expect(page.get_by_label("System prompt")).to_have_value("Be brief.")

    page.reload()
    unchanged()
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#replicas")).to_be_visible()
    page.go_back()
    unchanged()


def test_one_can_type_while_an_answer_arrives_and_escape_stops_it(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    expect(field(page)).to_be_focused()
    with thinking(page, shown, new_sum()[0]):
        expect(line(page)).to_contain_text(re.compile(r"\d+ tokens? \(\d+ thinking\) · \d+ tokens/s"))
        expect(field(page)).to_be_enabled()
        expect(field(page)).to_be_focused()
        page.keyboard.type("the next one")
        page.keyboard.press("Enter")
        expect(field(page)).to_have_value("the next one")
        page.keyboard.press("Escape")
        expect(line(page)).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    expect(field(page)).to_be_focused()
    expect(field(page)).to_have_attribute("placeholder", "Ask a question")
    assert len(questions(page)) == 1


def test_a_page_that_is_left_while_it_answers_keeps_what_arrived(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    question = new_sum()[0]
    with thinking(page, shown, question):
        page.wait_for_function("() => Object.keys(localStorage).some(name => name.startsWith('dray:conversation:'))")
        page.reload()
        expect(line(page)).to_contain_text("stopped")
    assert questions(page) == [question]


def test_an_answer_that_arrives_leaves_the_focus_in_the_list(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    export = page.get_by_role("button", name="Export all")
    with thinking(page, shown, new_sum()[0]):
        export.focus()
    expect(line(page)).to_contain_text("generated now")
    expect(export).to_be_focused()


def test_the_list_of_models_shows_all_of_them(visit: Open) -> None:
    page = visit("/chat")
    model = page.get_by_label("Model", exact=True)
    expect(model).to_have_value(MODEL)
    ask(page, new_sum()[0])
    expect(line(page)).to_contain_text("generated now")
    while not model.evaluate("element => element === document.activeElement"):
        page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("option")).to_have_text([re.compile(MODEL), re.compile("auto")])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(model).to_have_value("auto")
    question, answer = new_sum()
    ask(page, question)
    expect(last(page)).to_contain_text(answer)
    page.reload()
    expect(model).to_have_value("auto")
    wrote = page.locator(".bot.message small")
    expect(wrote).to_have_text([re.compile(rf"^{MODEL} · \d+ tokens"), re.compile(r"^auto · \d+ tokens")])


def test_copy_takes_the_answer_alone(visit: Open) -> None:
    page = visit("/chat")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    reopen(page, r"what is \(x\)?", "**42** for $5", "Let me think.")
    expect(page.get_by_text("Thought", exact=True)).to_be_visible()
    page.locator(".message-buttons-left button").first.click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "**42** for $5"
    page.locator(".message-buttons-right button").first.click()
    page.wait_for_function("() => navigator.clipboard.readText().then(text => text.startsWith('what'))")
    assert page.evaluate("navigator.clipboard.readText()") == r"what is \(x\)?"
    reopen(page, "first\n\nsecond", "42", "Let me think.")
    page.get_by_role("button", name="Copy as Markdown").click()
    expect(page.get_by_text("Copied", exact=True)).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "> first\n> \n> second\n\n42\n\n*m*\n"


def test_any_question_can_be_edited_and_asked_again(visit: Open) -> None:
    page = visit("/chat")
    reopen(page, r"first \(x\)", "one")
    (second, _), (edited, answer) = new_sum(), new_sum()
    ask(page, second)
    expect(page.locator(".bot.message")).to_have_count(2)
    expect(line(page)).to_contain_text("generated now")
    page.get_by_role("button", name="Edit").first.click()
    box = page.locator(".edit-textarea")
    expect(box).to_have_value(r"first \(x\)")
    assert box.evaluate("box => box.clientWidth") > 400, "as wide as a long question"
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    page.get_by_role("button", name="Edit").first.press("Enter")
    expect(box).to_be_focused()
    box.fill(edited)
    page.locator(".message-buttons-right button").first.click()
    expect(page.locator(".user.message")).to_have_count(1)
    expect(last(page)).to_contain_text(answer)
    assert questions(page) == [edited]


def test_conversations_are_listed_named_found_exported_and_deleted(visit: Open, tmp_path: Path) -> None:
    page = visit("/chat")
    page.on("dialog", lambda dialog: dialog.accept())
    reopen(page, "about rabbits", "They hop.")
    names = page.locator(".dray-list li")
    page.get_by_role("button", name="New conversation").press("Enter")
    expect(page.locator(".user.message")).to_have_count(0)
    expect(field(page)).to_be_focused()
    ask(page, new_sum()[0])
    expect(line(page)).to_contain_text("generated now")
    expect(names).to_have_count(2)
    search, rename = (
        page.get_by_role("searchbox", name="Search conversations"),
        page.get_by_role("button", name="Rename"),
    )
    search.fill("no such words")
    expect(names).to_have_text(["None found"])
    rename.press("Enter")
    name = page.get_by_role("textbox", name="Rename")
    name.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    name.dispatch_event("keydown", {"key": "Escape", "isComposing": True})
    expect(name).to_be_focused()
    page.keyboard.type("Sums")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Sums", "about rabbits"])
    expect(rename).to_be_focused()
    search.fill("they hop")
    expect(names).to_have_text(["about rabbits"])
    search.fill("")
    names.get_by_text("about rabbits").click()
    expect(last(page)).to_contain_text("They hop.")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as Markdown").click()
    assert Path(saved.value.path()).read_text() == "**about rabbits**\n\nThey hop.\n\n*m*\n"
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export all").click()
    exported = json.loads(Path(saved.value.path()).read_text())
    assert {entry["title"] for entry in exported["conversations"]} == {"Sums", "about rabbits"}
    file = tmp_path / "exported.json"
    file.write_text(json.dumps(exported))
    page.get_by_role("button", name="Delete").click()
    expect(names).to_have_text(["Sums"])
    expect(page.locator(".user.message")).to_have_count(0)
    page.reload()
    expect(names).to_have_text(["Sums"])
    page.locator("input[type=file]").set_input_files(file)
    expect(names).to_have_count(2)


def test_an_error_looks_like_one(visit: Open) -> None:
    page = visit("/chat")
    ask(page, "word " * 5000)
    error = last(page).get_by_role("alert")
    expect(error).to_contain_text("context")
    colour = "element => getComputedStyle(element).borderLeftColor"
    assert error.evaluate(colour) == "rgb(185, 28, 28)"
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("five")
    ask(page, new_sum()[0])
    expect(page.get_by_text("The seed must be a whole number")).to_be_visible()
    expect(page.locator(".user.message")).to_have_count(1)
    chinese = visit("/chat", locale="zh-CN")
    ask(chinese, "word " * 5000)
    expect(last(chinese).get_by_role("alert")).to_contain_text("对话超过了模型的上下文长度")


def test_thinking_can_be_turned_off_by_keyboard(visit: Open) -> None:
    page = visit("/chat")
    page.get_by_role("button", name="Settings").press("Enter")
    effort = page.get_by_role("combobox", name="Thinking")
    effort.focus()
    expect(page.get_by_role("option")).to_have_count(4)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(effort).to_have_value("Off")
    ask(page, new_sum()[0])
    expect(line(page)).to_contain_text("generated now")
    expect(page.locator(".thought-group")).to_have_count(0)
    preset = page.get_by_role("combobox", name="Instructions for")
    preset.focus()
    page.get_by_role("option", name="Short answers").click()
    expect(page.get_by_label("System prompt")).to_have_value("Answer in at most three sentences.")


def votes(shown: Dray, question: str) -> tuple[int, int, list[str]]:
    """Votes on the answer to this question that the server keeps: up, down, and the reasons."""
    listed = json.loads(shown.run("feedback", "list", "--json").stdout)
    [(up, down, reasons)] = [(one["up"], one["down"], one["reasons"]) for one in listed if one["question"] == question]
    return up, down, reasons


def test_an_answer_can_be_rated_with_a_word_of_why(visit: Open, shown: Dray) -> None:
    page = visit("/chat")
    question, _ = new_sum()
    ask(page, question)
    expect(line(page)).to_contain_text("generated now")
    why = page.get_by_label("What was wrong with the answer?")
    page.get_by_role("button", name="Dislike").click()
    expect(why).to_be_in_viewport(ratio=1)
    expect(field(page)).to_be_in_viewport(ratio=1)
    why.fill("too long")
    why.press("Enter")
    expect(why).to_have_count(0)
    expect(field(page)).to_be_focused()
    assert votes(shown, question) == (0, 1, ["down: too long"])
    page.get_by_role("button", name="Like", exact=True).click()
    expect(page.get_by_role("button", name="Liked")).to_be_visible()
    wait_for(lambda: votes(shown, question) == (1, 0, ["down: too long"]))
    page.reload()
    expect(page.get_by_role("button", name="Liked")).to_be_visible()
    expect(page.get_by_role("button", name="Disliked")).to_have_count(0)
    for answers in (2, 4):
        ask(page, new_sum()[0])
        expect(page.locator(".bot.message")).to_have_count(answers)
        expect(line(page)).to_contain_text("generated now")
        page.get_by_role("button", name="Dislike", exact=True).last.click()
        expect(why).to_be_visible()
        if answers == 2:
            ask(page, new_sum()[0])
            expect(why).to_have_count(0)
            expect(page.locator(".bot.message")).to_have_count(3)
            expect(line(page)).to_contain_text("generated now")
    page.get_by_role("button", name="New conversation").click()
    expect(why).to_have_count(0)


def test_language_and_theme_are_chosen_on_all_pages(visit: Open) -> None:
    page = visit("/chat", locale="en-GB")
    page.get_by_role("button", name="中文").click()
    expect(field(page)).to_have_attribute("placeholder", "请输入问题")
    expect(page.locator(".example").first).to_contain_text("鸡")
    page.get_by_role("button", name="深色").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.get_by_role("link", name="状态").click()
    expect(page.get_by_role("status")).to_contain_text("更新于")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.get_by_role("link", name="对话").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    expect(field(page)).to_have_attribute("placeholder", "请输入问题")


def test_a_phone_shows_the_list_when_it_is_wanted(visit: Open) -> None:
    page = visit("/chat", width=360)
    fresh = page.get_by_role("button", name="New conversation")
    expect(page.locator(".example")).to_have_count(4)
    expect(fresh).not_to_be_in_viewport()
    page.get_by_role("button", name="Show or hide the conversations").click()
    expect(fresh).to_be_in_viewport()
    fresh.click()
    expect(fresh).not_to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit: Open, scheme: str) -> None:
    axe = axe_script()
    page = visit("/chat", scheme=scheme)
    expect(page.locator(".example")).to_have_count(4)
    assert serious(page, axe) == []
    ask(page, "写一个Python函数判断回文字符串")
    expect(line(page)).to_be_visible()
    expect(last(page).locator("pre code .keyword", has_text="def")).to_be_visible()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Seed")).to_be_visible()
    assert serious(page, axe) == []
    assert without_focus_ring(page) == []
    ask(page, "word " * 5000)
    expect(last(page).get_by_role("alert")).to_be_visible()
    assert serious(page, axe) == []
    reopen(page, "Show code", '```python\n# a comment\nprint(f"{1 + 2:.1f}", None)\n```')
    expect(last(page).locator("pre code .comment")).to_be_visible()
    assert serious(page, axe) == []
