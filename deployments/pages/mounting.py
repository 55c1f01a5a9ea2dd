"""A gradio page as an ASGI application, as the chat page and the console are served."""

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from deployments.pages.head import PAGE_CSS
from deployments.pages.theme import theme

_PROGRESS_INTERVAL_S = 5.0
"""The pages have no progress bars."""


def page_app(page: gr.Blocks, css: Path, texts: gr.I18n, *, look_interval_s: float, max_sessions: int) -> FastAPI:
    """The application.

    css: the page's own, after that of all pages. look_interval_s: between two looks for new events in gradio's queue.
    max_sessions: open pages whose state it keeps.
    """
    # Gradio looks for new events a thousand times a second, and for progress a hundred times (gradio 6).
    page._queue.sleep_when_free = look_interval_s
    page._queue.progress_update_sleep_when_free = _PROGRESS_INTERVAL_S
    page.state_session_capacity = max_sessions
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(),
        page,
        path="/",
        i18n=texts,
        css=PAGE_CSS.read_text() + css.read_text(),
        theme=theme(),
        footer_links=[],
        run_history=False,
        max_file_size=0,
    )
    return app
