"""A person who has only a keyboard: goes on with Tab, and must see at every step where they are."""

import re

from playwright.sync_api import Locator, Page, expect

from tests.conftest import wait_for

MAX_TABS = 250
SIZES = [(1440, 900), (1024, 768), (768, 1024), (390, 844)]
"""Windows of a desk, a laptop, a tablet and a phone: width and height in pixels."""

WHERE = """() => {
  const one = document.activeElement, name = one.outerHTML.slice(0, 160);
  if (!one || one === document.body) return "";
  const box = one.getBoundingClientRect();
  const left = Math.max(box.left, 0), right = Math.min(box.right, innerWidth);
  const top = Math.max(box.top, 0), bottom = Math.min(box.bottom, innerHeight);
  const isShown = one.checkVisibility({ visibilityProperty: true });
  if (!isShown || right - left < 1 || bottom - top < 1) return `not visible: ${name}`;
  const above = [[1, 1], [1, 3], [2, 2], [3, 1], [3, 3]].map(([x, y]) =>
    document.elementFromPoint(left + (right - left) * x / 4, top + (bottom - top) * y / 4));
  if (!above.some(other => other && (one.contains(other) || other.contains(one))))
    return `covered by ${above[2]?.outerHTML.slice(0, 160)}: ${name}`;
  const lists = [...document.querySelectorAll("[role=listbox]")].filter(each => each.checkVisibility());
  if (lists.length && one.role !== "combobox") return `a list of choices stays open: ${lists[0].id}`;
  const around = [one, one.parentElement, one.parentElement?.parentElement].filter(Boolean);
  const hasRing = style => style.outlineStyle !== "none" || style.boxShadow !== "none";
  return around.some(each => hasRing(getComputedStyle(each))) ? "" : `shows no focus: ${name}`;
}"""
"""What keeps a person from seeing what has the focus; empty if nothing does."""


def press(page: Page, *keys: str) -> None:
    """Presses the keys, one after the other; after each, what has the focus can be seen."""
    for key in keys:
        page.keyboard.press(key)
        assert_focus_is_seen(page)


def assert_focus_is_seen(page: Page) -> None:
    """Waits for a page that still scrolls."""
    found: list[str] = []

    def seen() -> bool:
        found[:] = [page.evaluate(WHERE)]
        return not found[0]

    try:
        wait_for(seen, 3)
    except AssertionError:
        raise AssertionError(found[0]) from None


def has_focus(target: Locator) -> bool:
    """Whether it has the focus."""
    return bool(target.evaluate("element => element === document.activeElement"))


def go_to(page: Page, target: Locator, *, back: bool = False) -> None:
    """Goes to the element with the Tab key, backwards with Shift."""
    expect(target).to_be_attached()
    for _ in range(MAX_TABS):
        if has_focus(target):
            return
        press(page, "Shift+Tab" if back else "Tab")
    raise AssertionError(f"the Tab key does not reach {target}")


def button(page: Page, name: str | re.Pattern[str], *, back: bool = False, key: str = "Enter") -> None:
    """Goes to the first visible button of this name, and presses it."""
    found = page.get_by_role("button", name=name, exact=isinstance(name, str))
    go_to(page, found.first, back=back)
    page.keyboard.press(key)


def round_trip(page: Page, key: str) -> int:
    """Presses the key until the focus is where it was, and counts the steps."""
    start = page.evaluate_handle("document.activeElement")
    for steps in range(1, MAX_TABS):
        press(page, key)
        if start.evaluate("element => element === document.activeElement"):
            return steps
    raise AssertionError(f"{key} does not come back to {start}")
