"""The console by keyboard alone, in windows of four sizes and in both themes."""

import itertools
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Locked, Open
from tests.browser.keyboard import SIZES, assert_focus_is_seen, button, go_to, has_focus, press, round_trip
from tests.browser.test_chat import new_sum
from tests.browser.test_chat_use import axe_script, serious
from tests.browser.test_console import SECTIONS, cut, row, said, sign_in
from tests.conftest import MODEL, wait_for
from tests.slowly import slowed

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
    further = itertools.cycle((1, 2, 3))

    def chosen() -> bool:
        for _ in range(next(further)):
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


def kept(page: Page) -> None:
    """Whoever uses a keyboard is still somewhere, and sees where."""
    wait_for(lambda: page.evaluate("document.activeElement !== document.body"), 5)
    assert_focus_is_seen(page)


@pytest.mark.parametrize("size", SIZES[:1], ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_button_does_its_work_by_keyboard_alone(
    visit_locked: Open, locked: Locked, tmp_path: Path, size: tuple[int, int]
) -> None:
    dray, (question, _), (ours, _) = locked.dray, new_sum(), new_sum()
    wait_for(lambda: locked.ask(question).headers["x-dray-cache"] == "hit")
    (answers := tmp_path / "faq.jsonl").write_text(json.dumps({"question": ours, "answer": "Ask Ann."}))
    assert dray.run("answers", "import", str(answers), "--namespace", "team.support").returncode == 0
    team = f"team-{size[0]}"
    assert dray.run("teams", "add", team).returncode == 0
    page = visit_locked("/console", width=size[0], height=size[1])
    page.on("dialog", lambda dialog: dialog.accept())
    sign_in(page, locked.admin)

    # Delete a team.
    open_section(page, "teams")
    expect(row(page, team)).to_have_count(1)
    in_section(page, f"Delete: {team}")
    expect(said(page)).to_contain_text("Deleted")
    expect(row(page, team)).to_have_count(0)
    kept(page)

    # What the charts show.
    open_section(page, "usage")
    usage = page.locator("#section-usage")
    legend = usage.locator(".legend").first
    expect(legend).to_contain_text("support")
    choose(page, usage.get_by_role("combobox", name="Colours show"), "Model")
    expect(legend).to_contain_text(MODEL)
    expect(legend).not_to_contain_text("support")
    choose(page, usage.get_by_role("combobox", name="Bars show"), "Requests")
    choose(page, usage.get_by_role("combobox", name="Period"), "90 days")
    expect(usage.locator("dl")).to_be_visible()
    kept(page)

    # Which requests are shown.
    assert locked.post("/chat/completions", {}).status_code == 400
    wait_for(lambda: json.loads(dray.run("requests", "--team", "support", "--errors", "--json").stdout))
    open_section(page, "requests")
    requests = page.locator("#section-requests")
    go_to(page, requests.get_by_label("Only errors"))

    def only_errors() -> bool:
        rows = requests.locator("tbody tr").all_inner_texts()
        return bool(rows) and not any("200" in one.split() for one in rows)

    page.keyboard.press("Space")
    wait_for(only_errors)
    kept(page)
    choose(page, requests.get_by_role("combobox", name="Team"), "support")
    expect(row(page, "support").first).to_be_visible()

    # See a cached answer, and delete it.
    open_section(page, "answers")
    go_to(page, page.get_by_label("Search questions and answers"))
    page.keyboard.insert_text(question)
    page.keyboard.press("Enter")
    expect(row(page, question)).to_have_count(1)
    in_section(page, f"See: {question}")
    expect(page.get_by_role("table", name="The cached answer")).to_contain_text("Thinking")
    kept(page)
    in_section(page, f"Delete: {question}")
    expect(said(page)).to_contain_text("Deleted")
    expect(row(page, question)).to_have_count(0)
    kept(page)
    assert locked.ask(question).headers["x-dray-cache"] == "miss"

    # Edit a curated answer, and delete it.
    go_to(page, page.get_by_label("Search questions and answers"), back=True)
    press(page, "Control+a")
    page.keyboard.insert_text(ours)
    page.keyboard.press("Enter")
    in_section(page, f"Edit: {ours}")
    text = page.locator("#answer-text textarea")
    expect(text).to_be_focused()
    press(page, "Control+a")
    page.keyboard.insert_text("Ask Ben.")
    in_section(page, "Save")
    expect(row(page, ours)).to_contain_text("Ask Ben.")
    kept(page)
    in_section(page, f"Delete: {ours}")
    expect(row(page, ours)).to_have_count(0)
    kept(page)

    # Cancel a batch.
    with slowed(dray.status()["replicas"][0]["engine_pid"], share=0.05):
        lines = [
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": MODEL, "messages": [{"role": "user", "content": new_sum()[0]}]},
            }
            for number in range(20)
        ]
        (file := tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
        submitted = dray.run("batch", "submit", str(file), "--key", locked.team, "--json")
        batch = json.loads(submitted.stdout)["id"]
        open_section(page, "batches")
        in_section(page, f"Cancel: {batch}")
        expect(said(page)).to_contain_text("being cancelled")
        kept(page)
    wait_for(
        lambda: (
            json.loads(dray.run("batch", "show", batch, "--key", locked.team, "--json").stdout)["status"] == "cancelled"
        )
    )
    button(page, "Refresh", back=True)
    expect(row(page, batch)).to_contain_text("cancelled")


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
