"""Log files have a size that they do not exceed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.launch import log_file
from cluster.launch.environment import serve_environment
from cluster.redis_server import OwnRedis
from cluster.settings import Settings

LIMIT, OLDER = 20_000, 2

_WRITE = """
import sys
from cluster.launch.ray_parts import leave_out_unused_processes
leave_out_unused_processes()
import ray
options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 80 * 2**20}
ray.init(num_cpus=1, _temp_dir=sys.argv[1], **options)
@ray.remote
def write():
    for _ in range(2000):
        print("x" * 99, file=sys.__stderr__, flush=True)
ray.get(write.remote())
ray.shutdown()
"""


def test_what_replicas_write_is_rotated() -> None:
    """Dray's own lines go to standard error of Ray's workers."""
    names = serve_environment(Settings(), Path("haproxy")).keys() & {
        "RAY_ROTATION_MAX_BYTES",
        "RAY_ROTATION_BACKUP_COUNT",
    }
    assert len(names) == 2
    with tempfile.TemporaryDirectory(prefix="dray-l-") as folder:
        environment = os.environ | {"RAY_ROTATION_MAX_BYTES": str(LIMIT), "RAY_ROTATION_BACKUP_COUNT": str(OLDER)}
        own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-c", _WRITE, folder]
        subprocess.run(command, env=environment | own, check=True, timeout=120, capture_output=True)
        files = list((Path(folder) / "session_latest" / "logs").glob("worker-*.err*"))
        sizes = [file.stat().st_size for file in files]
    assert LIMIT / 2 < max(sizes) <= LIMIT + 200
    assert len([size for size in sizes if size > LIMIT / 2]) <= 1 + OLDER


def test_the_log_of_redis_is_rotated(tmp_path: Path) -> None:
    server = OwnRedis(tmp_path / "s", 8)
    server.start()
    try:
        log = tmp_path / "s" / "redis.log"
        server.rotate_log()
        assert not log.with_suffix(".log.1").exists()
        with log.open("ab") as file:
            file.truncate(6 * 2**20)
        server.rotate_log()
        assert log.with_suffix(".log.1").exists() and not log.exists()
        assert server.resume_persistence(), "a cache has none"
    finally:
        server.stop()


def test_the_log_of_the_launcher_is_rotated_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / log_file.LOG_FILE
    with log.open("a") as file:
        for number in range(5):
            print(f"{number:0100}", file=file, flush=True)
            log_file.rotate(tmp_path, max_bytes=100)
            print("after", file=file, flush=True)
            log_file.rotate(tmp_path, max_bytes=100)
    assert log.read_text() == "after\n"
    texts = [log.with_suffix(f".log.{number}").read_text() for number in (1, 2)]
    assert texts == [f"after\n{number:0100}\n" for number in (4, 3)]
    assert len(list(tmp_path.iterdir())) == 3
    log_file.remove(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_log_of_the_launcher_is_cut_off_where_it_cannot_be_copied(tmp_path: Path) -> None:
    log = tmp_path / log_file.LOG_FILE
    log.write_text("x" * 200)
    log.with_suffix(".log.1").mkdir()
    log.with_suffix(".log.2").touch()
    with pytest.raises(OSError, match="irectory"):
        log_file.rotate(tmp_path, max_bytes=100)
    assert log.read_text() == ""
