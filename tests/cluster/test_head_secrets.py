"""A head's passwords: one for each Redis, and none of them where other users of the machine can read it."""

import re
from pathlib import Path

import pytest

from cluster.launch import startup
from cluster.launch.ray_parts import hide_redis_password
from cluster.serve_config import Routers
from cluster.settings import Settings


def test_each_redis_has_its_own_password(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0", data_dir=tmp_path / "d", cluster={"head": True, "address": "127.0.0.1"})
    answers, teams = (startup._listen(settings, offset, store) for offset, store in enumerate(("answers", "teams")))
    state = startup._redis_of_ray(settings).listen
    assert answers and teams and state
    assert len({answers.password, teams.password, state.password}) == 3
    again = startup._listen(settings, 0, "answers")
    assert again and again.password == answers.password, "routers on other machines still use it after a restart"


def test_serve_which_logs_its_config_sees_no_password() -> None:
    secret = "redis://:swordfish@10.0.0.1:6380/0"
    settings = Settings(cache={"url": secret}, teams={"url": secret})
    routers = Routers(settings, secret, secret, ())
    assert "swordfish" not in str(routers.application_config())
    assert set(routers.urls) == {"DRAY_CACHE__URL", "DRAY_TEAMS__URL"}
    public = "redis://10.0.0.1:6380/0"
    assert public in str(Routers(settings, public, public, ()).application_config())


def test_ray_starts_nothing_with_the_password_on_its_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], kind: str, env_updates: dict[str, str]) -> None:
        started.append((command, env_updates))

    monkeypatch.setattr(services, "start_ray_process", start)
    hide_redis_password()
    services.start_ray_process(["gcs_server", "--redis_password=secret"], "gcs_server")
    worker = "--python_worker_command=python worker.py --redis-password=secret --gcs-address=x"
    other = "--cpp_worker_command=worker --ray_redis_password=secret -Dray.redis.password=secret --x"
    services.start_ray_process(["raylet", worker, other], "raylet", env_updates={"A": "b"})
    assert not re.search("secret", str([command for command, _ in started]))
    assert started[0] == (["gcs_server", "--fromenv=redis_password"], {"FLAGS_redis_password": "secret"})
    assert started[1][0][1] == "--python_worker_command=python worker.py --gcs-address=x"
    assert started[1][0][2] == "--cpp_worker_command=worker --x"
    assert started[1][1] == {"A": "b"}
