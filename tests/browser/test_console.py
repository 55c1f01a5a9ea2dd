"""The console as an administrator uses it, with the keyboard alone."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Dialog, Locator, Page, expect

from tests.browser.conftest import Locked, Open
from tests.browser.test_chat_use import axe_script, serious, untranslated, without_focus_ring
from tests.conftest import MODEL, logged, wait_for

pytestmark = pytest.mark.slow

SECTIONS = ("teams", "usage", "models", "requests", "batches", "answers", "errors")
MAX_TABS = 200
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}}"


def sign_in(page: Page, key: str) -> None:
    field = page.get_by_label("Admin key", exact=True).or_(page.get_by_label("管理员密钥", exact=True))
    expect(field).to_be_focused()
    page.keyboard.insert_text(key)
    page.keyboard.press("Enter")


def tab_to(page: Page, target: Locator) -> None:
    """Goes there with the Tab key."""
    expect(target).to_be_visible()
    for _ in range(MAX_TABS):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("the Tab key does not reach it")


def press(page: Page, name: str | re.Pattern[str], role: str = "button") -> None:
    """Presses a button of the section that is shown, or a link, by keyboard."""
    place = page.locator("body") if role == "link" else page.locator(".section.shown")
    tab_to(page, place.get_by_role(role, name=name, exact=isinstance(name, str)).first)  # type: ignore[arg-type]
    page.keyboard.press("Enter")


def go_to(page: Page, section: str) -> None:
    tab_to(page, page.locator(f".console-nav a[href='#{section}']"))
    page.keyboard.press("Enter")
    expect(page.locator(f"#section-{section} .board :is(h2, dl)").first).to_be_visible()


def row(page: Page, name: str | re.Pattern[str]) -> Locator:
    return page.locator(".section.shown tbody tr").filter(has_text=name)


def cut(page: Page) -> list[str]:
    """Texts of the section that do not fit into their place."""
    script = """() => [...document.querySelectorAll(".section.shown :is(td, dt, dd, h2, p, input)")].filter(
      one => one.clientWidth && one.scrollWidth > one.clientWidth + 1).map(one => one.textContent || one.value)"""
    found: list[str] = page.evaluate(script)
    return found


def said(page: Page) -> Locator:
    return page.locator(".console-message")


def test_a_dray_without_keys_says_how_to_begin(visit: Open) -> None:
    page = visit("/console")
    expect(page.locator("#login")).to_contain_text("dray keys create --admin")
    expect(page.locator("#login")).to_contain_text("this Dray has no keys yet")
    expect(page.locator("#sections")).to_be_hidden()
    assert serious(page, axe_script()) == []


def test_the_key_is_in_the_tab_alone(visit_locked: Open, locked: Locked) -> None:
    page = visit_locked("/console")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    sign_in(page, "dray-wrong")
    expect(page.get_by_role("alert")).to_contain_text("Invalid key")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(locked.team)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("belongs to a team")
    expect(page.locator("#sections")).to_be_hidden()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(locked.admin)
    page.keyboard.press("Enter")
    expect(row(page, "support").first).to_be_visible()
    page.reload()
    expect(row(page, "support").first).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Admin key", exact=True)).to_be_focused()
    other.close()
    tab_to(page, page.get_by_role("button", name="Sign out"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
    kept = page.evaluate("JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie])")
    everything = "\n".join([kept, *urls, *logged(locked.dray)])
    assert not any(key in everything for key in (locked.admin, locked.team, "dray-wrong"))


def test_a_team_gets_a_key_by_keyboard_alone(visit_locked: Open, locked: Locked) -> None:
    page = visit_locked("/console")
    asked: list[str] = []

    def agree(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", agree)
    sign_in(page, locked.admin)
    press(page, re.compile("Make or change a team"))
    tab_to(page, page.get_by_role("textbox", name=re.compile("^Name")))
    page.keyboard.type("hotline")
    tab_to(page, page.get_by_role("spinbutton", name="Requests a minute"))
    page.keyboard.press("Control+a")
    page.keyboard.type("60")
    tab_to(page, page.locator("#team-form").get_by_role("button", name="Save"))
    page.keyboard.press("Enter")
    expect(said(page)).to_contain_text("Saved")
    expect(row(page, "hotline").first).to_contain_text("60")
    press(page, "Edit: hotline")
    expect(page.get_by_role("spinbutton", name="Weight")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    tab_to(page, page.locator("#team-form").get_by_role("button", name="Save"))
    page.keyboard.press("Enter")
    expect(row(page, "hotline").first).to_contain_text(re.compile(r"all\s*2"))

    press(page, re.compile("Make a key"))
    team = page.locator("#key-form").get_by_role("combobox")
    tab_to(page, team)
    expect(page.get_by_role("option")).to_have_count(3)

    def chosen() -> bool:
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        return team.input_value() in ("hotline", "support")

    # While gradio draws new choices, it takes no keys.
    wait_for(chosen)
    press(page, "Make the key")
    field = page.get_by_label("The new key: copy it now, it is not shown again")
    expect(field).to_be_focused()
    secret = field.input_value()
    wait_for(lambda: locked.ask("What is 2 plus 2?", secret).is_success)
    press(page, "I have copied it")
    expect(field).to_have_count(0)
    number = secret.split("-")[1]
    press(page, f"Rotate: {number}")
    expect(field).to_be_focused()
    expect(row(page, number).first).to_contain_text("replaced by")
    press(page, f"Revoke: {number}")
    expect(said(page)).to_contain_text("revoked")
    assert number in asked[0] and number in asked[1]
    wait_for(lambda: locked.ask("What is 2 plus 2?", secret).status_code == 401)
    audited = locked.dray.run("audit", "verify")
    assert audited.returncode == 0, audited.stderr


def test_what_teams_asked_is_shown(visit_locked: Open, locked: Locked) -> None:
    page = visit_locked("/console#usage")
    locked.ask("What is 3 plus 4?")
    locked.ask("What is 3 plus 4?")
    httpx.post(f"{locked.dray.url}/chat/completions", json={}, headers={"Authorization": f"Bearer {locked.team}"})
    sign_in(page, locked.admin)
    expect(page.locator("#section-usage canvas, #section-usage svg.marks").first).to_be_visible()
    expect(row(page, re.compile(f"^support{MODEL}")).first).to_be_visible()
    expect(page.locator("#section-usage .legend").first).to_contain_text("support")
    go_to(page, "models")
    [replica] = locked.dray.status()["replicas"]
    expect(row(page, replica["replica"])).to_contain_text(MODEL)
    go_to(page, "requests")
    expect(row(page, re.compile("chat/completions200")).first).to_contain_text("support")
    go_to(page, "errors")
    expect(row(page, re.compile("^400")).first).to_contain_text("support")


def test_an_answer_that_was_voted_down_is_corrected_in_one_step(visit_locked: Open, locked: Locked) -> None:
    question = f"When is the office open? {HOSTILE}"
    answer = locked.ask(question)
    vote = {"id": answer.json()["id"], "rating": "down", "reason": "wrong"}
    headers = {"Authorization": f"Bearer {locked.team}"}
    wait_for(lambda: httpx.post(f"{locked.dray.url}/feedback", json=vote, headers=headers).is_success)
    page = visit_locked("/console#answers")
    page.on("dialog", lambda dialog: pytest.fail(f"a question ran as a script: {dialog.message}"))
    sign_in(page, locked.admin)
    expect(row(page, HOSTILE).first).to_contain_text("down: wrong")
    press(page, re.compile("^Correct it: When is the office open"))
    text = page.locator("#answer-text textarea")
    expect(text).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("From nine to five.")
    tab_to(page, page.locator("#answer-form").get_by_role("button", name="Save"))
    page.keyboard.press("Enter")
    expect(said(page)).to_contain_text("Saved")

    def corrected() -> bool:
        given = locked.ask(question)
        return given.headers["x-dray-cache"] == "curated" and "From nine to five." in given.text

    wait_for(corrected)
    search = page.get_by_label("Search questions and answers")
    tab_to(page, search)
    page.keyboard.type("office")
    page.keyboard.press("Enter")
    expect(page.locator(".section.shown table").last).to_contain_text("From nine to five.")
    assert page.locator("#sections img[src=x]").count() == 0


def test_three_pages_lead_to_each_other_in_one_language_and_theme(visit_locked: Open, locked: Locked) -> None:
    page = visit_locked("/console", locale="en-GB")
    sign_in(page, locked.admin)
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("link", name="团队与密钥")).to_be_visible()
    expect(page.locator("#section-teams h2").first).to_have_text("团队")
    page.get_by_role("button", name="深色").click()
    page.get_by_role("link", name="对话").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.get_by_role("link", name="控制台").click()
    expect(page.get_by_role("link", name="团队与密钥")).to_be_visible()
    page.get_by_role("link", name="状态").click()
    page.get_by_role("link", name="控制台").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))


def test_the_status_page_is_shown_and_linked_to_admins_alone(visit_locked: Open, locked: Locked) -> None:
    page = visit_locked("/status")
    key, refusal = page.get_by_label("Admin key", exact=True), page.get_by_role("alert")
    expect(key).to_be_focused()
    expect(page.get_by_role("table")).to_be_hidden()
    assert serious(page, axe_script()) == []
    for wrong, reason in (("dray-错", "Invalid key"), (locked.team, "not an admin key"), ("dray-wrong", "Invalid key")):
        key.fill(wrong)
        key.press("Enter")
        expect(refusal).to_contain_text(reason)
    page.get_by_role("link", name="Chat").click()
    expect(page.get_by_role("link", name="Console")).to_be_visible()
    status = page.get_by_role("link", name="Status")
    expect(status).to_be_hidden()
    page.go_back()
    key.fill(locked.admin)
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("row").filter(has_text=MODEL)).to_have_count(1)
    page.reload()
    expect(page.get_by_role("row").filter(has_text=MODEL)).to_have_count(1)
    expect(key).to_be_hidden()
    page.get_by_role("link", name="Chat").click()
    expect(status).to_be_visible()

    other = visit_locked("/console")
    status = other.get_by_role("link", name="Status")
    expect(other.get_by_label("Admin key", exact=True)).to_be_focused()
    expect(status).to_be_hidden()
    sign_in(other, locked.admin)
    status.click()
    expect(other.get_by_role("row").filter(has_text=MODEL)).to_have_count(1)
    other.go_back()
    other.get_by_role("button", name="Sign out").click()
    expect(other.get_by_label("Admin key", exact=True)).to_be_focused()
    expect(status).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme", "locale"), [(1100, "light", "en-US"), (390, "dark", "zh-CN")])
def test_it_fits_every_window_and_axe_finds_nothing_serious(
    visit_locked: Open, locked: Locked, tmp_path: Path, width: int, scheme: str, locale: str
) -> None:
    axe = axe_script()
    page = visit_locked("/console", width=width, scheme=scheme, locale=locale)
    expect(page.locator("#admin-key input")).to_be_focused()
    assert serious(page, axe) == []
    sign_in(page, locked.admin)
    for section in SECTIONS:
        go_to(page, section)
        for form in page.locator(".section.shown .label-wrap").all():
            form.press("Enter")
        if section == "usage":
            expect(page.locator("#section-usage canvas, #section-usage svg.marks").first).to_be_visible()
        page.screenshot(path=tmp_path / f"{section}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, section
        assert cut(page) == [], section
        assert serious(page, axe) == [], section
        assert without_focus_ring(page) == [], section
        if locale == "zh-CN":
            assert untranslated(page, "td, code, .legend, .vega-embed, [aria-roledescription]") == set(), section
