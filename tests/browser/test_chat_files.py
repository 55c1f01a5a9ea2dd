"""Files beside questions, and what the page shows of them below answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from deployments.pages.attachment import File
from deployments.pages.client import Progress
from deployments.pages.conversation import Answer, Conversation, Turn, read
from tests.browser.conftest import Open
from tests.browser.test_chat import ask, field, last, line, new_sum
from tests.browser.test_chat_use import axe_script, serious
from tests.conftest import MODEL, Dray, wait_for
from tests.deployments.pages.documents import docx, pdf
from tests.deployments.pages.documents import line as pdf_line

pytestmark = pytest.mark.slow

TEXT = "Doors close at six. The last one out turns off the light."


def attach(page: Page, file: Path) -> None:
    """Chooses the file, by keyboard alone."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach a file").press("Enter")
    chooser.value.set_files(file)


def attachment(page: Page) -> Locator:
    return page.locator("#attachment")


def kept(page: Page) -> list[Conversation]:
    """The conversations that the browser keeps."""
    script = "Object.entries(localStorage).filter(([name]) => name.startsWith('dray:conversation:')).map(e => e[1])"
    return [read(json.loads(entry)["value"]) for entry in page.evaluate(script)]


def test_a_file_is_attached_asked_about_and_kept(visit: Open, tmp_path: Path) -> None:
    page = visit("/chat")
    (file := tmp_path / "规定.txt").write_bytes(f"六点关门。{TEXT}".encode("gb18030"))
    attach(page, file)
    expect(attachment(page)).to_contain_text("Attached: 规定.txt")
    expect(field(page)).to_be_focused()
    page.reload()
    expect(attachment(page)).to_contain_text("Attached: 规定.txt")
    question, _ = new_sum()
    ask(page, question)
    expect(line(page)).to_contain_text("generated now")
    expect(attachment(page)).not_to_be_visible()
    page.reload()
    expect(page.locator(".user.message .dray-file")).to_have_text("规定.txt")
    expect(page.locator(".user.message")).to_contain_text(question)
    [conversation] = kept(page)
    assert conversation.turns[0].file == File("规定.txt", f"六点关门。{TEXT}")
    page.get_by_role("button", name="Edit").first.press("Enter")
    expect(page.locator(".edit-textarea")).to_have_value(question)
    again, _ = new_sum()
    page.locator(".edit-textarea").fill(again)
    page.locator(".message-buttons-right button").first.click()
    expect(page.locator(".user.message")).to_contain_text(again)
    expect(page.locator(".user.message .dray-file")).to_have_text("规定.txt")


@pytest.mark.parametrize(
    ("name", "data"), [("a.pdf", pdf(pdf_line(TEXT))), ("a.docx", docx(TEXT)), ("a.md", f"# Rules\n{TEXT}".encode())]
)
def test_a_file_is_dropped_on_the_page_and_taken_away(visit: Open, name: str, data: bytes) -> None:
    page = visit("/chat")
    expect(page.locator(".example")).to_have_count(4)
    script = """([name, data]) => {
      const dropped = new DataTransfer();
      dropped.items.add(new File([new Uint8Array(data)], name));
      return dropped;
    }"""
    dropped = page.evaluate_handle(script, [name, list(data)])
    page.locator("#chat").dispatch_event("dragover", {"dataTransfer": dropped})
    expect(page.locator("body.dray-dropping")).to_have_count(1)
    page.locator("#chat").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.locator("body.dray-dropping")).to_have_count(0)
    expect(attachment(page)).to_contain_text(f"Attached: {name}")
    page.get_by_role("button", name=f"Remove {name}").press("Enter")
    expect(attachment(page)).not_to_be_visible()
    expect(field(page)).to_be_focused()


def test_a_file_that_is_refused_says_why(visit: Open, tmp_path: Path) -> None:
    page = visit("/chat")
    error = attachment(page).get_by_role("alert")
    (tmp_path / "long.txt").write_text("Every word of this is one of many. " * 1000)
    attach(page, tmp_path / "long.txt")
    expect(error).to_contain_text("characters fit")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 no more")
    attach(page, tmp_path / "broken.pdf")
    expect(error).to_contain_text("broken.pdf cannot be read")
    (tmp_path / "large.txt").write_bytes(b"x" * 5_000_001)
    attach(page, tmp_path / "large.txt")
    expect(error).to_contain_text("large.txt is too large")
    ask(page, new_sum()[0])
    expect(error).to_have_count(0)
    expect(line(page)).to_contain_text("generated now")
    attach(page, tmp_path / "large.txt")
    expect(error).to_contain_text("large.txt is too large")
    page.get_by_role("button", name="New conversation").click()
    expect(error).to_have_count(0)
    (tmp_path / "good.txt").write_text(TEXT)
    attach(page, tmp_path / "good.txt")
    expect(error).to_have_count(0)
    expect(attachment(page)).to_contain_text("Attached: good.txt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_an_answer_quotes_is_shown_below_it(visit: Open, tmp_path: Path, scheme: str) -> None:
    page = visit("/chat", width=390, scheme=scheme)
    answer = Answer(
        "m",
        Progress(text="At six.", finish="stop", first_s=0.1, tokens=9),
        source="rules.txt",
        passages=("Doors close at <b>six</b>.",),
    )
    turn = Turn("When?", (answer,), file=File("rules.txt", TEXT))
    value = {"at": 1, "value": Conversation("kept", (turn,)).json()}
    page.evaluate("kept => localStorage.setItem('dray:conversation:kept', JSON.stringify(kept))", value)
    page.evaluate("sessionStorage.setItem('dray:open', 'kept')")
    page.reload()
    expect(last(page).locator(".dray-passages")).to_contain_text("From rules.txt")
    expect(last(page).locator("blockquote")).to_have_text("Doors close at <b>six</b>.")
    (tmp_path / "good.txt").write_text(TEXT)
    attach(page, tmp_path / "good.txt")
    expect(attachment(page)).to_contain_text("Attached: good.txt")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(field(page)).to_be_in_viewport(ratio=1)
    assert serious(page, axe_script()) == []


@pytest.fixture
def approved(shown: Dray, tmp_path: Path) -> Iterator[str]:
    """A question with a curated answer."""
    question, _ = new_sum()
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"question": question, "answer": "Ask the office.", "author": "法务 Ann"}))
    assert shown.run("answers", "import", str(answers)).returncode == 0
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
    wait_for(lambda: httpx.post(f"{shown.url}/chat/completions", json=body).headers["x-dray-cache"] == "curated")
    yield question
    [answer] = json.loads(shown.run("answers", "list", "--json").stdout)
    assert shown.run("answers", "remove", answer["id"]).returncode == 0


def test_an_answer_that_people_approved_says_so(visit: Open, approved: str) -> None:
    page = visit("/chat")
    ask(page, approved)
    expect(line(page)).to_contain_text("approved by people (法务 Ann)")
    expect(last(page)).to_contain_text("Ask the office.")
