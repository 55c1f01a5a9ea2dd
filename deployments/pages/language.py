"""The language of an open page: the one that its owner chose, or the browser's."""

import gradio as gr

from deployments.pages.i18n import Texts, texts_for

LANGUAGE_COOKIE = "dray-language"
"""As in chat.js."""


def texts_of(request: gr.Request) -> Texts:
    """The texts in the language of the page that sent an event."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    return texts_for(chosen or request.headers.get("accept-language", ""))
