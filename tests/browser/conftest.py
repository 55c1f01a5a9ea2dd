"""A Dray with its pages, and a browser to open them."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cluster.models.folder import BUNDLED_FOLDER
from cluster.ports import free_port
from tests.conftest import MODEL, Dray, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

Open = Callable[..., Page]
MODELS = [{"source": "bundled", "name": MODEL}, {"name": "auto", "route": [{"to": MODEL}]}]
"""The bundled model, and a name that leads to it: two to choose from, and one engine."""
_START_S, _WAIT_MS = 280, 60_000
"""A machine that others use too takes minutes for a start, and seconds for a click."""


@contextmanager
def with_pages(**environment: str) -> Iterator[Dray]:
    """A Dray with its pages. environment: variables of more settings."""
    if find_spec("gradio") is None:
        pytest.skip("the pages need the extra `page`")
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    try:
        started = dray.run("up", "--detach", timeout=_START_S, DRAY_PAGE="true", **environment)
        assert started.returncode == 0, started.stderr
        assert f"chat in the browser: {dray.root}/chat" in started.stdout
        wait_for(lambda: httpx.get(f"{dray.root}/chat", follow_redirects=True, timeout=_START_S).is_success, _START_S)
        yield dray
    finally:
        dray.run("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def shown() -> Iterator[Dray]:
    """The Dray that most tests of this folder share. It has no keys."""
    with with_pages(DRAY_MODELS=json.dumps(MODELS)) as dray:
        yield dray


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    expect.set_options(timeout=_WAIT_MS)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opener(dray: Dray, browser: Browser) -> Iterator[Open]:
    """A function that opens a page of Dray in a new window. Checks at the end that pages requested nothing from other
    hosts, and that no script failed."""
    requests: list[str] = []
    errors: list[str] = []
    contexts = []

    # The console also lists requests that failed or that a page which is left gave up; some tests cause these.
    lost = ("Failed to load resource", "ERR_", "BodyStreamBuffer was aborted", "Connection errored out", "AbortError")

    def log_error(error: str) -> None:
        if not any(reason in error for reason in lost):
            errors.append(error)

    def open_page(
        path: str,
        width: int = 1100,
        height: int = 800,
        locale: str = "en-US",
        scheme: str = "light",
        bypass_csp: bool = False,
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            locale=locale,
            bypass_csp=bypass_csp,
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_WAIT_MS)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: log_error(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: log_error(str(error)))
        page.goto(dray.root + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    hosts = {urlsplit(url).netloc for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {f"127.0.0.1:{dray.port}"}
    assert errors == []


@pytest.fixture
def visit(shown: Dray, browser: Browser) -> Iterator[Open]:
    """Opens a page of Dray in a new window."""
    with opener(shown, browser) as open_page:
        yield open_page


ADVISED = {"temperature": 0.6, "top_p": 0.95}
"""What the model of the Dray with keys comes with, as its makers advise it."""


@dataclass
class Locked:
    """A Dray with an admin key, and a team's key. Its model has other defaults than the bundled one."""

    dray: Dray
    admin: str
    team: str

    def ask(self, question: str, key: str = "") -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0}
        return self.post("/chat/completions", body, key)

    def post(self, path: str, body: object, key: str = "") -> httpx.Response:
        """What the API answers to this team, or to this key."""
        headers = {"Authorization": f"Bearer {key or self.team}"}
        return httpx.post(f"{self.dray.url}{path}", json=body, headers=headers, timeout=60)


@pytest.fixture(scope="package")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    model = tmp_path_factory.mktemp("models") / "advised"
    shutil.copytree(BUNDLED_FOLDER, model)
    defaults = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(defaults | {"do_sample": True} | ADVISED))
    models = json.dumps([{"source": str(model), "name": MODEL}])
    with with_pages(DRAY_STATUS_PAGE="admins", DRAY_MODELS=models) as dray:
        assert dray.run("teams", "add", "support").returncode == 0
        admin, team = (dray.run("keys", "create", owner).stdout.strip() for owner in ("--admin", "support"))
        found = Locked(dray, admin, team)
        wait_for(lambda: found.ask("What is 2 plus 2?").is_success)
        yield found


@pytest.fixture
def visit_locked(locked: Locked, browser: Browser) -> Iterator[Open]:
    with opener(locked.dray, browser) as open_page:
        yield open_page
