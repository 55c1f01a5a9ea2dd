"""The language of an open page: the one that its owner chose, or the browser's."""

from collections.abc import Mapping
from typing import Protocol

from deployments.pages.i18n import Texts, texts_for

LANGUAGE_COOKIE = "dray-language"
"""As in page.js."""


class PageRequest(Protocol):
    """A request of a page, as gradio and Starlette have it."""

    @property
    def cookies(self) -> Mapping[str, str]: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


def texts_of(request: PageRequest) -> Texts:
    """The texts in the language of the page that sent an event."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    return texts_for(chosen or request.headers.get("accept-language", ""))
