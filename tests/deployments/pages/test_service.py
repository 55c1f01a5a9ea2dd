"""The process of the chat page."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.liveness import SILENCE_S, HungProcesses
from tests.cluster.test_liveness import ended, look, signs, suspend
from tests.cluster.test_supervisor import Clock
from tests.conftest import wait_for

pytest.importorskip("gradio", reason="the chat page needs the extra `page`")

_PAGE = """
import asyncio
from deployments.pages.service import Page

async def serve():
    page = object.__new__(Page)
    await Page.__init__(page, {
        "api_url": "http://127.0.0.1:1/v1", "body_bytes": 1000, "receive_timeout_s": 20, "log_level": "info",
        "host": "0.0.0.0", "allowed_hosts": [], "teams_url": "",
    })
    app = page.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        await asyncio.Event().wait()

asyncio.run(serve())
"""


def test_a_page_that_hangs_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", _PAGE], env=environment) as process:
        try:
            page = psutil.Process(process.pid)
            wait_for(lambda: signs(tmp_path), 60)
            hung = HungProcesses(tmp_path, clock := Clock())
            suspend(page)
            look(hung, clock, SILENCE_S)
            assert page.status() == psutil.STATUS_STOPPED
            look(hung, clock, 2)
            wait_for(ended(page))
        finally:
            process.kill()
