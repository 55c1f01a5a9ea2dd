"""The chat page by keyboard alone, in windows of four sizes and in both themes."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import ADVISED, Locked, Open
from tests.browser.keyboard import SIZES, assert_focus_is_seen, button, go_to, has_focus, press, round_trip
from tests.browser.test_chat import field, last, line, new_sum, thinking
from tests.browser.test_chat_use import axe_script, questions, serious
from tests.conftest import MODEL, Dray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def show_list(page: Page, *, wide: bool) -> None:
    """Shows the list of conversations, where the window has no room for it beside the chat."""
    if not wide:
        button(page, "Show or hide the conversations", back=True)
    expect(page.get_by_role("button", name="New conversation")).to_be_in_viewport()


def type_question(page: Page, question: str) -> None:
    """Writes the question where the focus is, which must be its field, and asks it."""
    expect(field(page)).to_be_focused()
    page.keyboard.insert_text(question)
    page.keyboard.press("Enter")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_everything_is_done_by_keyboard_alone(visit: Open, shown: Dray, size: tuple[int, int]) -> None:
    wide, axe = size[0] > 1000, axe_script()
    page = visit("/chat", width=size[0], height=size[1], scheme="light")
    page.on("dialog", lambda dialog: dialog.accept())
    expect(page.locator(".example")).to_have_count(4)

    # Stop, with the button and with Escape.
    first, answer = new_sum()
    for stop in ("button", "Escape"):
        with thinking(page, shown, first):
            if stop == "button":
                button(page, "Stop")
            else:
                page.keyboard.press("Escape")
            expect(line(page)).to_contain_text("stopped")
            expect(field(page)).to_be_focused()

    # Retry, and back to the answer before.
    button(page, "Retry", back=True)
    expect(line(page)).to_contain_text("answer 2 of 2")
    expect(line(page)).to_contain_text("generated now")
    expect(last(page)).to_contain_text(answer)
    expect(field(page)).to_be_focused()
    button(page, re.compile("Previous answer"), back=True)
    expect(line(page)).to_contain_text("answer 1 of 2")
    expect(field(page)).to_be_focused()

    # Ask, and edit the question.
    asked, _ = new_sum()
    type_question(page, asked)
    expect(page.locator(".user.message")).to_have_count(3)
    expect(line(page)).to_contain_text("generated now")
    edited, answer = new_sum()
    go_to(page, page.get_by_role("button", name="Edit").last, back=True)
    press(page, "Enter")
    box = page.locator(".edit-textarea")
    expect(box).to_be_focused()
    press(page, "Escape")
    expect(box).to_have_count(0)
    expect(page.get_by_role("button", name="Edit").last).to_be_focused()
    press(page, "Enter")
    expect(box).to_be_focused()
    press(page, "Control+a")
    page.keyboard.insert_text(edited)
    press(page, "Control+Enter")
    expect(last(page)).to_contain_text(answer)
    expect(line(page)).to_contain_text("generated now")
    assert questions(page)[-1] == edited
    expect(field(page)).to_be_focused()

    # Rename.
    show_list(page, wide=wide)
    button(page, "Rename")
    expect(page.get_by_role("textbox", name="Rename")).to_be_focused()
    page.keyboard.insert_text("Sums")
    press(page, "Enter")
    names = page.locator(".dray-list li")
    expect(names.filter(has_text="Sums")).to_have_count(1)
    expect(page.get_by_role("button", name="Rename")).to_be_focused()

    # Search: a second conversation, and back to the first.
    button(page, "New conversation", back=True)
    second, _ = new_sum()
    type_question(page, second)
    expect(line(page)).to_contain_text("generated now")
    show_list(page, wide=wide)
    go_to(page, page.get_by_role("searchbox", name="Search conversations"), back=wide)
    page.keyboard.insert_text(edited)
    expect(names).to_have_text(["Sums"])
    button(page, "Sums")
    expect(last(page)).to_contain_text(answer)
    expect(field(page)).to_be_focused()

    # Delete.
    show_list(page, wide=wide)
    button(page, "Delete")
    expect(page.locator(".user.message")).to_have_count(0)
    expect(field(page)).to_be_focused()

    # Settings.
    button(page, re.compile("^Settings"))
    go_to(page, page.get_by_role("spinbutton", name="Maximum tokens"))
    press(page, "Control+a")
    page.keyboard.insert_text("8")
    effort = page.get_by_role("combobox", name="Thinking")
    go_to(page, effort, back=True)
    expect(page.get_by_role("option")).to_have_count(4)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(effort).to_have_value("Off")
    expect(effort).to_be_focused()
    expect(page.get_by_role("option")).to_have_count(0)
    assert_focus_is_seen(page)
    assert serious(page, axe) == []
    go_to(page, field(page), back=True)
    type_question(page, new_sum()[0])
    expect(line(page)).to_contain_text("cut off at the token limit")
    assert serious(page, axe) == []

    # Theme and language.
    button(page, "Dark", back=True)
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    assert has_focus(page.get_by_role("button", name="Light"))
    assert serious(page, axe) == []
    button(page, "中文")
    expect(field(page)).to_have_attribute("placeholder", "请输入问题")
    expect(field(page)).to_be_focused()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    assert serious(page, axe) == []


def copied(page: Page, pattern: str) -> None:
    """Waits until what matches the regular expression is in the clipboard."""
    script = "pattern => navigator.clipboard.readText().then(text => new RegExp(pattern).test(text))"
    page.wait_for_function(script, arg=pattern)


@pytest.mark.parametrize("size", [SIZES[0], SIZES[-1]], ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_button_does_its_work_by_keyboard_alone(visit: Open, size: tuple[int, int], tmp_path: Path) -> None:
    wide = size[0] > 1000
    page = visit("/chat", width=size[0], height=size[1])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    # An example; then copy it, and its code.
    go_to(page, page.locator(".example", has_text="Python function"), back=True)
    page.keyboard.press("Enter")
    expect(line(page)).to_contain_text("first token after")
    expect(field(page)).to_be_focused()
    go_to(page, page.locator(".message-buttons-left button").first, back=True)
    press(page, "Enter")
    copied(page, "```python")
    go_to(page, last(page).get_by_title("copy"), back=True)
    press(page, "Enter")
    copied(page, "^def ")

    # Like, and then rather not, with a reason.
    go_to(page, page.get_by_role("button", name="Like", exact=True))
    press(page, "Enter")
    expect(page.get_by_role("button", name="Liked")).to_be_visible()
    button(page, "Dislike", back=True)
    expect(page.get_by_role("button", name="Disliked")).to_be_visible()
    why = page.get_by_label("What was wrong with the answer?")
    go_to(page, why)
    page.keyboard.insert_text("too short")
    page.keyboard.press("Enter")
    expect(why).to_have_count(0)
    expect(field(page)).to_be_focused()

    # Save, export, import.
    show_list(page, wide=wide)
    with page.expect_download() as saved:
        button(page, "Save as Markdown", back=wide)
    assert "def " in Path(saved.value.path()).read_text()
    with page.expect_download() as saved:
        button(page, "Export all")
    assert_focus_is_seen(page)
    with page.expect_file_chooser() as chooser:
        button(page, "Import")
    exported = json.loads(Path(saved.value.path()).read_text())
    [conversation] = exported["conversations"]
    (file := tmp_path / "more.json").write_text(json.dumps({"conversations": [conversation | {"id": "another"}]}))
    chooser.value.set_files(file)
    expect(page.locator(".dray-list li")).to_have_count(2)
    if not wide:
        button(page, "Show or hide the conversations", back=True)

    # Attach a file, and take it away again.
    (file := tmp_path / "rules.txt").write_text("Doors close at six.")
    with page.expect_file_chooser() as chooser:
        button(page, re.compile("^Attach a file"))
    chooser.value.set_files(file)
    expect(page.locator("#attachment")).to_contain_text("Attached: rules.txt")
    expect(field(page)).to_be_focused()
    go_to(page, page.locator("#attachment button"), back=True)
    press(page, "Enter")
    expect(page.locator("#attachment")).not_to_be_visible()
    expect(field(page)).to_be_focused()

    # A preset.
    button(page, re.compile("^Settings"))
    preset = page.get_by_role("combobox", name="Instructions for")
    go_to(page, preset)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_label("System prompt")).not_to_have_value("")
    expect(preset).to_be_focused()
    assert_focus_is_seen(page)


def test_a_key_is_entered_and_the_settings_open_with_the_models_own_defaults(
    visit_locked: Open, locked: Locked
) -> None:
    page = visit_locked("/chat")
    key, model = page.get_by_label("API key", exact=True), page.get_by_label("Model", exact=True)
    go_to(page, key, back=True)
    page.keyboard.insert_text(locked.team)
    press(page, "Enter")
    expect(model).to_have_value(MODEL)
    expect(key).to_be_focused()
    button(page, re.compile("^Settings"))
    for name, advised in (("Temperature", ADVISED["temperature"]), ("Top-p", ADVISED["top_p"])):
        expect(page.get_by_role("spinbutton", name=name)).to_have_value(str(advised))
        expect(page.get_by_text(f"The model's default: {advised}")).to_be_visible()
    go_to(page, field(page), back=True)
    question, _ = new_sum()
    type_question(page, question)
    expect(line(page)).to_contain_text("generated now")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_tab_goes_round_and_never_out_of_sight(visit: Open, size: tuple[int, int]) -> None:
    page = visit("/chat", width=size[0], height=size[1], scheme="dark")
    expect(page.locator(".example")).to_have_count(4)
    page.get_by_role("button", name="Settings").press("Enter")
    field(page).focus()
    type_question(page, new_sum()[0])
    expect(line(page)).to_be_visible()
    for key in ("Tab", "Shift+Tab"):
        assert round_trip(page, key) > 20
