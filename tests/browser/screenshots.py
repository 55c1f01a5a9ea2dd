"""Renews the pictures of the pages: python -m tests.browser.screenshots FOLDER [--docs]

FOLDER gets each page in windows of four sizes, both themes and both languages: PAGE-WIDTH-THEME-LANGUAGE.png. With
--docs, those that the documentation shows are put into docs/images as well. Needs a Chromium on the PATH, and a font
with Chinese characters (apt-get install fonts-noto-cjk), without which these would be boxes. Takes about four minutes.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cluster.launch.state import read_record
from cluster.records.usage import days_until_today, field_of, key_of
from cluster.redis_client import connect
from deployments.pages.client import PageModel
from deployments.pages.examples import examples
from deployments.pages.i18n import CHINESE, ENGLISH
from tests.browser.conftest import CHROMIUM, Locked, with_pages
from tests.browser.keyboard import SIZES
from tests.browser.test_chat import ask, line
from tests.browser.test_console import SECTIONS
from tests.conftest import MODEL, Dray, wait_for

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LANGUAGES = {"en": ("en-US", ENGLISH), "zh": ("zh-CN", CHINESE)}
THEMES = ("light", "dark")
SHOWN = {
    "chat": "chat-1024-light",
    "chat-dark": "chat-1024-dark",
    "chat-phone": "start-390-light",
    "console": "usage-1024-light",
    "console-dark": "teams-1024-dark",
    "console-phone": "usage-390-light",
}
"""By its name in docs/images, the picture in each language that the documentation shows."""
_COLOURS = 256
"""A picture of a page has few: it takes a third of the bytes."""
_WAIT_MS = 60_000


def chat(page: Page, language: str) -> Iterator[str]:
    """The chat page: empty, with an answer, and with its settings. Yields a name where a picture is due."""
    offered = examples(PageModel(MODEL), LANGUAGES[language][1])
    expect(page.locator(".example")).to_have_count(len(offered))
    yield "start"
    for count, question in enumerate((offered[2], offered[0]), 1):
        ask(page, question)
        expect(page.locator(".bot.message")).to_have_count(count)
        expect(line(page)).to_contain_text(re.compile("first token|首个 token"))
        expect(page.locator("#question .stop-button")).to_have_count(0)
    page.get_by_text(re.compile("^(Thought|思考过程)$")).last.click()
    page.mouse.move(0, 0)
    page.evaluate("document.querySelector('#chat .bubble-wrap').scrollTop = 1e6")
    yield "chat"
    page.get_by_role("button", name=re.compile("^(Settings|设置)")).click()
    page.get_by_label(LANGUAGES[language][1].labels.system).scroll_into_view_if_needed()
    yield "settings"


def console(page: Page, key: str) -> Iterator[str]:
    """The sections of the console."""
    page.locator("#admin-key input").fill(key)
    page.locator("#admin-key input").press("Enter")
    for section in SECTIONS:
        page.locator(f".console-nav a[href='#{section}']").click()
        expect(page.locator(f"#section-{section} .board :is(h2, dl)").first).to_be_visible()
        if section == "usage":
            expect(page.locator("#section-usage canvas, #section-usage svg.marks").first).to_be_visible()
        page.mouse.move(0, 0)
        yield section


def save(page: Page, file: Path, *, whole: bool) -> None:
    """Writes a picture of the window, or of the whole page."""
    page.wait_for_timeout(600)  # what moves to its place, or charts that are drawn
    data = page.screenshot(full_page=whole, animations="disabled")
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, optimize=True)


def pictures(browser: Browser, root: str, folder: Path, key: str = "") -> None:
    """The chat page in all variants; with an admin key the console."""
    for width, height in SIZES:
        for theme in THEMES:
            for language, (locale, _) in LANGUAGES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    locale=locale,
                    color_scheme=theme,  # type: ignore[arg-type]
                )
                page = context.new_page()
                page.set_default_timeout(_WAIT_MS)
                page.goto(f"{root}/{'console' if key else 'chat'}")
                for name in console(page, key) if key else chat(page, language):
                    save(page, folder / f"{name}-{width}-{theme}-{language}.png", whole=bool(key))
                context.close()
                print(f"{'console' if key else 'chat'} {width} {theme} {language}", flush=True)


def furnish(dray: Dray) -> str:
    """Gives the Dray what a console shows, and returns an admin key."""
    teams = {"support": ("--tokens-per-month", "60000"), "hotline": ("--weight", "2"), "finance": ("--model", MODEL)}
    keys = {}
    for team, options in teams.items():
        assert dray.run("teams", "add", team, *options).returncode == 0
        keys[team] = dray.run("keys", "create", team, "--label", "bot").stdout.strip()
    admin = dray.run("keys", "create", "--admin", "--label", "console").stdout.strip()
    locked = Locked(dray, admin, keys["support"])
    wait_for(lambda: locked.ask("What is 2 plus 2?").is_success)
    for number, key in enumerate(keys.values()):
        for question in (*examples(PageModel(MODEL), ENGLISH), *examples(PageModel(MODEL), CHINESE))[: 5 + number]:
            for _ in range(2):
                locked.ask(question, key)
    vote = {"rating": "down", "reason": "too short"}
    answer = locked.ask("What is 347 times 586?").json()["id"]
    wait_for(lambda: locked.post("/feedback", vote | {"id": answer}).is_success)
    locked.post("/chat/completions", {})
    locked.ask("What is 1 plus 1?", "dray-wrong")
    record = read_record(dray.folder / "s")
    assert record is not None
    with connect(record.teams) as store:
        for number, day in enumerate(days_until_today(30)[:-1]):
            for team, share in (("support", 5), ("hotline", 3), ("finance", 2)):
                # Less on weekends, and a little more each week.
                tokens = share * (40 + 9 * (number * 7919 % 13) + 6 * number) * (1 if number % 7 < 5 else 0.2)
                counts = {"requests": tokens / 40, "hits": tokens / 90, "prompt": tokens / 4, "completion": tokens}
                for counter, count in (counts | {"saved_prompt": tokens / 9, "saved_completion": tokens / 3}).items():
                    store.hincrby(key_of(day), field_of(team, MODEL, counter), round(count))
    return admin


def show(picture: Path, file: Path) -> None:
    """Puts what the window shows of a page at first into the documentation."""
    image = Image.open(picture)
    height = dict(SIZES)[image.width]
    image.crop((0, 0, image.width, min(height, image.height))).save(file, optimize=True)


def has_chinese_font() -> bool:
    """Whether a font for Chinese is installed."""
    if shutil.which("fc-list") is None:
        return False
    return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False).stdout)


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--docs", action="store_true", help="put those of the documentation into docs/images")
    parser.add_argument("--only", choices=("chat", "console"), help="one page only")
    chosen = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no Chromium on the PATH: apt-get install chromium")
    if not has_chinese_font():
        sys.exit("There is no font for Chinese: apt-get install fonts-noto-cjk")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    prices = json.dumps([{"model": MODEL, "input": 20, "output": 60}])
    with with_pages(DRAY_PRICES__MODELS=prices) as dray, sync_playwright() as play:
        expect.set_options(timeout=_WAIT_MS)
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        if chosen.only != "console":
            pictures(browser, dray.root, chosen.folder)
        if chosen.only != "chat":
            pictures(browser, dray.root, chosen.folder, furnish(dray))
        browser.close()
    if chosen.docs:
        for name, picture in SHOWN.items():
            for language in LANGUAGES:
                suffix = "" if language == "en" else f".{language}"
                show(chosen.folder / f"{picture}-{language}.png", IMAGES / f"{name}{suffix}.png")


if __name__ == "__main__":
    main()
