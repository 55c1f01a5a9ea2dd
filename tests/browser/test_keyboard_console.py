"""The console by keyboard alone, in windows of four sizes and in both themes."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Locked, Open
from tests.browser.keyboard import SIZES, assert_focus_is_seen, button, go_to, has_focus, press, round_trip
from tests.browser.test_chat import new_sum
from tests.browser.test_chat_use import axe_script, serious
from tests.browser.test_console import SECTIONS, cut, row, said, sign_in
from tests.conftest import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def in_section(page: Page, name: str | re.Pattern[str], *, back: bool = False) -> None:
    """Goes to a button of the section that is shown, and presses it."""
    shown = page.locator(".section.shown")
    go_to(page, shown.get_by_role("button", name=name, exact=isinstance(name, str)).first, back=back)
    page.keyboard.press("Enter")


def open_section(page: Page, name: str) -> None:
    go_to(page, page.locator(f".console-nav a[href='#{name}']"), back=True)
    press(page, "Enter")
    expect(page.locator(f"#section-{name} .board :is(h2, dl)").first).to_be_visible()


def choose(page: Page, field: Locator, wanted: str) -> None:
    """Chooses from a list of choices, with the arrow keys."""
    go_to(page, field)

    def chosen() -> bool:
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        return field.input_value() == wanted

    # While gradio draws new choices, it takes no keys.
    wait_for(chosen)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_everything_is_done_by_keyboard_alone(visit_locked: Open, locked: Locked, size: tuple[int, int]) -> None:
    question, _ = new_sum()
    wait_for(lambda: locked.ask(question).headers["x-dray-cache"] == "hit")
    axe = axe_script()
    page = visit_locked("/console", width=size[0], height=size[1], scheme="light")
    page.on("dialog", lambda dialog: dialog.accept())
    sign_in(page, locked.admin)

    # Each section, in both themes.
    for theme in ("Dark", "Light"):
        for section in SECTIONS:
            open_section(page, section)
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], section
            assert cut(page) == [], section
            assert serious(page, axe) == [], section
        button(page, theme, back=True)
        assert has_focus(page.get_by_role("button", name="Light" if theme == "Dark" else "Dark"))

    # Make a key, and revoke it.
    open_section(page, "teams")
    in_section(page, re.compile("Make a key"))
    choose(page, page.locator("#key-form").get_by_role("combobox"), "support")
    in_section(page, "Make the key")
    field = page.get_by_label("The new key: copy it now, it is not shown again")
    expect(field).to_be_focused()
    assert_focus_is_seen(page)
    number = field.input_value().split("-")[1]
    in_section(page, "I have copied it")
    expect(field).to_have_count(0)
    assert_focus_is_seen(page)
    assert page.evaluate("document.activeElement !== document.body")
    in_section(page, f"Revoke: {number}")
    expect(said(page)).to_contain_text("revoked")
    expect(row(page, number).first).to_contain_text("expired or revoked")
    assert page.evaluate("document.activeElement !== document.body")
    assert_focus_is_seen(page)

    # Pin an answer.
    open_section(page, "answers")
    search = page.get_by_label("Search questions and answers")
    go_to(page, search)
    page.keyboard.insert_text(question)
    page.keyboard.press("Enter")
    expect(row(page, question)).to_have_count(1)
    in_section(page, f"Pin: {question}")
    expect(said(page)).to_contain_text("Pinned")
    assert page.evaluate("document.activeElement !== document.body")
    assert_focus_is_seen(page)
    wait_for(lambda: locked.ask(question).headers["x-dray-cache"] == "curated")

    # Language, and out.
    button(page, "中文", back=True)
    expect(page.get_by_role("link", name="团队与密钥")).to_be_visible()
    button(page, "退出")
    expect(page.get_by_label("管理员密钥", exact=True)).to_be_focused()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_tab_goes_round_and_never_out_of_sight(visit_locked: Open, locked: Locked, size: tuple[int, int]) -> None:
    page = visit_locked("/console", width=size[0], height=size[1], scheme="dark")
    sign_in(page, locked.admin)
    for section in SECTIONS:
        open_section(page, section)
        for form in page.locator(".section.shown .label-wrap").all():
            form.press("Enter")
        for key in ("Tab", "Shift+Tab"):
            assert round_trip(page, key) > 10, section
