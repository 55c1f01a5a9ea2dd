"""The status page in a real browser."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.test_chat_use import axe_script, serious
from tests.conftest import MODEL, Dray
from tests.slowly import slowed

pytestmark = pytest.mark.slow


def test_it_shows_replicas_and_speed(visit: Open, shown: Dray) -> None:
    [replica] = shown.status()["replicas"]
    page = visit("/status")
    row = page.locator("#replicas tr").nth(1)
    expect(row).to_contain_text(MODEL)
    expect(row).to_contain_text(replica["replica"])
    for cpu in replica["cpus"].split(","):
        expect(page.get_by_title(f"{MODEL} / {replica['replica']}").filter(has_text=cpu)).to_have_count(1)
    question = {"model": MODEL, "messages": [{"role": "user", "content": "What is 347 times 586?"}], "n": 8}
    with slowed(replica["engine_pid"], share=0.05):
        answer = httpx.post(f"{shown.url}/chat/completions", json=question, timeout=60)
    assert answer.is_success
    expect(page.locator("#max")).to_have_text(re.compile(r"^([2-9]|\d\d+)$"))
    expect(page.locator("polyline")).to_have_attribute("points", re.compile(r"[\d.]+,[\d.]+ [\d.]+,[\d.]+"))
    httpx.post(f"{shown.url}/chat/completions", json=question, timeout=60)
    share = page.locator("#figures div", has_text="answered from cache").locator("b")
    expect(share).to_have_text(re.compile(r"^[1-9]\d* %$"))


def test_it_says_when_dray_cannot_be_reached(visit: Open) -> None:
    page = visit("/status", locale="zh-CN")
    expect(page).to_have_title("Dray：状态")
    expect(page.get_by_role("status")).to_contain_text("更新于")
    expect(page.get_by_role("status")).to_have_attribute("aria-live", "off")
    page.context.set_offline(True)
    expect(page.get_by_role("status")).to_contain_text("无响应")
    expect(page.get_by_role("status")).to_have_attribute("aria-live", "polite")
    page.context.set_offline(False)
    expect(page.get_by_role("status")).to_contain_text("更新于")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_every_window(visit: Open, tmp_path: Path, width: int, scheme: str) -> None:
    page = visit("/status", width=width, scheme=scheme)
    expect(page.locator("#replicas tr")).to_have_count(2)
    page.screenshot(path=tmp_path / "status.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page, axe_script()) == []
