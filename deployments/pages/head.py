"""What a gradio page's HTML begins with: its icon, and the scripts that run before gradio's.

gradio adds its own `head` only after it has chosen the language.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.static import ICON

PAGE_CSS = Path(__file__).with_name("page.css")
_PAGE_SCRIPT = Path(__file__).with_name("page.js")
_HEAD = b"<head>"


class PageHead:
    """ASGI middleware that puts it into the page, and leaves all other answers as they are."""

    def __init__(self, app: ASGIApp, scripts: Sequence[Path], words: Mapping[str, object]) -> None:
        """scripts: the page's own, after the one that all pages share. words: its texts, by language, and
        `status_page`: who sees the status page."""
        self._app = app
        texts = json.dumps(words, ensure_ascii=False).replace("<", "\\u003c")
        code = "".join(script.read_text() for script in (_PAGE_SCRIPT, *scripts))
        self._added = f"{ICON}<script>const words = {texts};\n{code}</script>".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) not in ("", "/"):
            return await self._app(scope, receive, send)
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        body = bytearray()

        async def send_with_head(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                page = bytes(body).replace(_HEAD, _HEAD + self._added, 1)
                MutableHeaders(scope=start)["content-length"] = str(len(page))
                await send(start)
                await send({"type": "http.response.body", "body": page})

        return await self._app({**scope, "headers": headers}, receive, send_with_head)
