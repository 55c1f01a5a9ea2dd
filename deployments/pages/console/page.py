"""The console: gradio's components, their events, and Dray's admin API behind them."""

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from deployments.pages.console.admin import AdminClient
from deployments.pages.console.answers import Answers
from deployments.pages.console.batches import Batches
from deployments.pages.console.login import Login
from deployments.pages.console.models import Models
from deployments.pages.console.requests import Errors, Requests
from deployments.pages.console.section import Events, Section
from deployments.pages.console.teams import Teams
from deployments.pages.console.usage import Usage
from deployments.pages.console.words import label
from deployments.pages.mounting import page_app

_MAX_SESSIONS = 256
_LOOK_INTERVAL_S = 5.0
"""No event of the console goes through gradio's queue."""
_CSS = Path(__file__).with_name("console.css")


def console_app(api_url: str, *, sign_on: bool = False) -> FastAPI:
    """The console as an ASGI application.

    api_url: base URL of the API, ending in /v1. sign_on: whether it offers single sign-on.
    """
    page = Console(AdminClient(api_url), sign_on=sign_on).build()
    return page_app(page, _CSS, label, look_interval_s=_LOOK_INTERVAL_S, max_sessions=_MAX_SESSIONS)


class Console:
    """The page: the form to sign in, and the sections, of which console.js shows one at a time."""

    def __init__(self, client: AdminClient, *, sign_on: bool = False) -> None:
        self.login = Login(client, sign_on=sign_on)
        self._events = events = Events(self.login)
        self.sections: tuple[Section, ...] = (
            Teams(events),
            Usage(events),
            Models(events),
            Requests(events),
            Batches(events),
            Answers(events),
            Errors(events),
        )

    def build(self) -> gr.Blocks:
        """The page's layout and events."""
        names = [section.name for section in self.sections]
        with gr.Blocks(title="Dray", fill_width=True, analytics_enabled=False) as page:
            gr.HTML("", html_template="<div></div>", js_on_load=f"console_page.header(element, {names})")
            self.login.build()
            self._events.build()
            with gr.Column(elem_id="sections"):
                for section in self.sections:
                    with gr.Column(elem_id=f"section-{section.name}", elem_classes="section"):
                        section.build()
            self.login.listen(page)
            for section in self.sections:
                section.listen()
        return page.queue(default_concurrency_limit=None)
