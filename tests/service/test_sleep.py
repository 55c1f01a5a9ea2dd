"""A model that sleeps: without requests its replicas end, and the next request wakes it and gets its answer."""

import openai
import psutil
import pytest

from tests.conftest import MODEL, RABBITS, Dray, wait_for


@pytest.mark.slow
def test_the_first_request_after_a_sleep_waits_and_is_answered(another: Dray) -> None:
    settings = {"DRAY_MODEL__SLEEP_AFTER_S": "10", "DRAY_CACHE__ENABLED": "false"}
    started = another.run("up", "--detach", **settings)  # type: ignore[arg-type]
    assert started.returncode == 0, started.stderr
    [awake] = another.status()["replicas"]
    with openai.OpenAI(base_url=another.url, api_key="none", max_retries=0, timeout=120) as client:

        def ask() -> str | None:
            made = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": RABBITS}], temperature=0
            )
            return made.choices[0].message.content

        before = ask()
        wait_for(lambda: not psutil.pid_exists(awake["engine_pid"]), 90)
        wait_for(lambda: not another.status()["replicas"], 30)
        assert "asleep" in another.run("status").stdout
        assert client.get("/../health/ready", cast_to=object) == {"status": "ok"}
        assert ask() == before
    [woken] = another.status()["replicas"]
    assert woken["engine_pid"] != awake["engine_pid"]
