"""A sleeping model: without requests its replicas end, and the next request starts one and gets an answer."""

import openai
import psutil
import pytest

from tests.conftest import MODEL, RABBITS, started_dray, wait_for


@pytest.mark.slow
def test_the_first_request_after_a_sleep_waits_and_is_answered() -> None:
    settings = {"DRAY_MODEL__SLEEP_AFTER_S": "10", "DRAY_CACHE__ENABLED": "false"}
    with (
        started_dray(settings=settings) as dray,
        openai.OpenAI(base_url=dray.url, api_key="none", max_retries=0, timeout=120) as client,
    ):
        [first] = dray.status()["replicas"]

        def ask() -> str | None:
            completion = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": RABBITS}], temperature=0
            )
            return completion.choices[0].message.content

        before = ask()
        wait_for(lambda: not psutil.pid_exists(first["engine_pid"]), 90)
        wait_for(lambda: not dray.status()["replicas"], 30)
        assert "asleep" in dray.run("status").stdout
        assert client.get("/../health/ready", cast_to=object) == {"status": "ok"}
        assert ask() == before
        [second] = dray.status()["replicas"]
    assert second["engine_pid"] != first["engine_pid"]
