"""Pages of other sites, in a real browser on the machine of a Dray without keys: they make nothing and read nothing."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import CHROMIUM
from tests.conftest import MODEL, Dray

pytestmark = pytest.mark.slow

REBOUND = "rebound.example"
TEAM = {"name": "theirs"}
KEY = {"team": ""}
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}

BLIND = """async ([url, body]) => {
    const answer = await fetch(url, {method: "POST", mode: "no-cors", body: new Blob([JSON.stringify(body)])});
    return answer.type;
}"""
"""Sends JSON without a content type, which needs no permission from the server. The page cannot read the answer."""

FORM = """([url, body]) => {
    const form = document.createElement("form");
    Object.assign(form, {action: url, method: "POST", enctype: "text/plain", target: "_blank"});
    const field = document.createElement("input");
    Object.assign(field, {name: JSON.stringify(body).slice(0, -1) + ', "x": "', value: '"}'});
    form.append(field);
    document.body.append(form);
    form.submit();
}"""

READ = """async ([path, body]) => {
    const headers = {"Content-Type": "application/json"};
    const options = body ? {method: "POST", headers, body: JSON.stringify(body)} : {};
    const answer = await fetch(path, options);
    return [answer.status, await answer.text()];
}"""


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = b"<!doctype html><title>another site</title><body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Stays silent."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of another site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a browser for which the name of another site leads to this machine."""
    rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
    own = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
    yield own.new_page()
    own.close()


def assert_nothing_was_made(dray: Dray) -> None:
    for what in ("teams", "keys"):
        listed = dray.run(what, "list", "--json")
        assert listed.returncode == 0 and json.loads(listed.stdout) == [], listed


def test_a_page_of_another_site_sends_in_vain(shown: Dray, page: Page, site: str) -> None:
    statuses: dict[str, int] = {}
    page.context.on("response", lambda answer: statuses.update({answer.url: answer.status}))
    page.goto(site)
    for path, body in (("/admin/teams", TEAM), ("/admin/keys", KEY), ("/v1/chat/completions", QUESTION)):
        assert page.evaluate(BLIND, [shown.root + path, body]) == "opaque", "it has arrived"
        assert statuses.pop(shown.root + path) == 403, path
    with page.context.expect_page() as opened:
        page.evaluate(FORM, [f"{shown.root}/admin/teams", TEAM])
    opened.value.wait_for_load_state()
    assert statuses[f"{shown.root}/admin/teams"] == 403
    assert_nothing_was_made(shown)


def test_a_name_that_is_pointed_here_later_reads_nothing(shown: Dray, page: Page) -> None:
    """DNS rebinding: for the browser, what Dray answers is the page's own site, which it may read."""
    opened = page.goto(f"http://{REBOUND}:{shown.port}/chat")
    assert opened is not None and opened.status == 421
    for path, body in (
        ("/v1/models", None),
        ("/metrics", None),
        ("/status", None),
        ("/admin/keys", None),
        ("/admin/teams", TEAM),
        ("/admin/keys", KEY),
        ("/v1/chat/completions", QUESTION),
    ):
        status, text = page.evaluate(READ, [path, body])
        assert status == 421 and MODEL not in text, (path, text)
    assert_nothing_was_made(shown)
