"""Who is at the console. All other modules get the credentials of a person from here."""

from typing import Any

import gradio as gr
from gradio.components.textbox import InputHTMLAttributes

from deployments.api.protocol.admin import LoginResponse, TeamsResponse
from deployments.pages.client import ApiRefused, ServerUnreachable
from deployments.pages.console.admin import NEEDS_ADMIN, Admin, AdminClient, path_of, reason
from deployments.pages.console.tables import Board, Notice
from deployments.pages.console.words import Words, label, words_of
from deployments.tenancy.sessions import session_of_browser

EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
"""Options of every event: none waits for another, and gradio offers none as an API."""
_CREATE = "dray keys create --admin"
_SIGN_ON = "/console/login"
"""The router's own route, from which the browser comes back with a session."""


class Login:
    """The form for the admin key. The browser keeps the key for its tab (console.js), and sends it with each event.

    Without a key, the session counts that single sign-on has left in the browser.
    """

    def __init__(self, client: AdminClient, *, sign_on: bool = False) -> None:
        """sign_on: whether to offer single sign-on."""
        self._client = client
        self._sign_on = sign_on

    def build(self) -> None:
        """Adds the form."""
        with gr.Column(elem_id="login"):
            self.notice = gr.HTML(
                "", html_template="<div></div>", js_on_load="console_page.board(element, props, trigger, watch)"
            )
            self.key = gr.Textbox(
                label=label("admin_key"),
                placeholder=label("admin_key_hint"),
                type="password",
                max_lines=1,
                elem_id="admin-key",
                html_attributes=InputHTMLAttributes(autocomplete="off", spellcheck=False),
            )
            self.enter = gr.Button(label("sign_in"), variant="primary")
            if self._sign_on:
                gr.Button(label("sign_on"), link=_SIGN_ON, link_target="_self", elem_id="sign-on")
        # "in" where the key is good: console.js then shows the console and keeps the key.
        self.state = gr.HTML(
            "", html_template="<div></div>", js_on_load="console_page.signing(element, props, watch)", elem_id="signing"
        )

    def listen(self, page: gr.Blocks) -> None:
        """Sets its events."""
        outputs = [self.state, self.notice, self.key]
        page.load(self.restore, self.key, outputs, js="() => console_page.kept()", **EVENT)
        gr.on([self.enter.click, self.key.submit], self.sign_in, self.key, outputs, **EVENT)

    def admin(self, key: str | None, request: gr.Request) -> Admin:
        """The admin API with the credentials of whoever sent this event."""
        return Admin(self._client, _headers(key, request), words_of(request))

    async def restore(self, key: str | None, request: gr.Request) -> tuple[str, str, Any]:
        """A page that was just opened: with the key that the browser kept, if it is still good."""
        return await self._enter(key, request, asked=False)

    async def sign_in(self, key: str | None, request: gr.Request) -> tuple[str, str, Any]:
        """A key that was entered."""
        return await self._enter(key, request, asked=True)

    async def _enter(self, key: str | None, request: gr.Request, *, asked: bool) -> tuple[str, str, Any]:
        """Updates of the state, the notice and the field. asked: the person has entered a key."""
        headers = _headers(key, request)
        try:
            await self._client.call("GET", path_of("teams"), TeamsResponse, headers)
            if asked:
                await self._client.call("POST", path_of("logins"), LoginResponse, headers, {})
        except (ApiRefused, ServerUnreachable) as error:
            notices = _help(error, words_of(request), given=bool((key or "").strip() or headers), asked=asked)
            return "out", Board(notices=notices).json(), key if asked else ""
        return "in", "", (key or "").strip()


def _headers(key: str | None, request: gr.Request) -> dict[str, str]:
    key = (key or "").strip() or session_of_browser(request.headers)
    # Anything else is no key of Dray's, and may be no header.
    return {"Authorization": f"Bearer {key}"} if key.isascii() and key.isprintable() and key else {}


def _help(error: ApiRefused | ServerUnreachable, words: Words, *, given: bool, asked: bool) -> list[Notice]:
    """Why the console stays shut, and what to do."""
    if isinstance(error, ServerUnreachable):
        return [Notice(words["unreachable"], "bad")]
    if error.code == NEEDS_ADMIN and not given:
        return [Notice(words["keyless"], code=_CREATE)]
    create = Notice(words["how_to_create"], "", _CREATE)
    if asked and not given:
        return [Notice(words["key_missing"], "bad"), create]
    if given:
        return [Notice(reason(error, words), "bad"), create]
    return [create]
