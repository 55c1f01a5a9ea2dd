"""What the sections of the console have in common: their events, and the components that most have."""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import gradio as gr

from deployments.pages.console.admin import Failed
from deployments.pages.console.login import EVENT, Login
from deployments.pages.console.words import label

Updates = dict[Any, Any]
"""New values, or updates, by component."""
Handler = Callable[..., Awaitable[Updates]]


class Section(Protocol):
    """A section of the console. name: of its text, and in the page's address."""

    name: str

    def build(self) -> None:
        """Adds its components."""

    def listen(self) -> None:
        """Sets their events."""


class Events:
    """Sets the events of all sections. Each brings the person's key, and what goes wrong is said on the page."""

    def __init__(self, login: Login) -> None:
        self.login = login

    def build(self) -> None:
        """Adds the place for messages."""
        self._message = gr.HTML(
            "", html_template="<div></div>", js_on_load="console_page.message(element, props, watch)"
        )

    def on(self, triggers: Sequence[Any], handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Calls the handler on these triggers, with the key and then the inputs. It may change the outputs."""

        @wraps(handler)
        async def run(*values: Any, **more: Any) -> Updates:
            try:
                return {self._message: ""} | await handler(*values, **more)
            except Failed as error:
                return self.say(str(error), "bad")

        return gr.on(triggers, run, [self.login.key, *inputs], [*outputs, self._message], **EVENT)

    def say(self, message: str, tone: str = "good") -> Updates:
        """Shows a message. tone: as a notice's."""
        # With the time, so that the page sees the same one again.
        return {self._message: json.dumps({"text": message, "tone": tone, "at": time.time()})}


def board(section: str = "") -> gr.HTML:
    """A component for a `Board`. A click on a row's button triggers its `click` with the action and the row's id.

    section: the one whose main board this is: it is clicked with the action "open" when the section opens.
    """
    script = f"console_page.board(element, props, trigger, watch, '{section}')"
    return gr.HTML("", html_template="<div></div>", js_on_load=script)


def kept_in_page() -> gr.HTML:
    """A value that only the page has, so that it outlives the page's process. Nobody sees it."""
    return gr.HTML("", html_template="<div></div>", js_on_load="")


def choice(name: str, choices: list[tuple[gr.I18n, Any]], value: Any, min_width: int = 160) -> gr.Dropdown:
    """A field with few choices. name: of its label. min_width: in pixels, so that the longest choice fits."""
    return gr.Dropdown(choices, value=value, label=label(name), filterable=False, min_width=min_width)


def follow(event: Any, field: str) -> None:
    """After this event, of a click on a row's button that fills a form: goes to a field of it. field: its element."""
    event.then(None, js=f"() => console_page.followed('{field}')", **EVENT)


def stay(event: Any, form: str) -> None:
    """After this event, which closes a form: whoever uses a keyboard is at its heading. form: its element."""
    event.then(None, js=f"() => console_page.closed('{form}')", **EVENT)
