"""Files that the documentation has for programs of the host, checked by these programs where they are installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.configuration import load

DOCS = Path(__file__).parents[2] / "docs"
HOST = (DOCS / "guides" / "plain-host.md").read_text()


def block(page: str, language: str) -> str:
    """The one fenced block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)
    return str(found)


def check(*command: str) -> str:
    """What a program says of a file that it checks. Skips the test where the program is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_settings_of_a_plain_host(tmp_path: Path) -> None:
    (file := tmp_path / "dray.yaml").write_text(block(HOST, "yaml"))
    settings = load(config=file).settings
    assert settings.model.source == "qwen3-1.7b" and str(settings.state_dir) == "/run/dray/state"


def test_the_unit_for_systemd(tmp_path: Path) -> None:
    """With a program that exists here in place of Dray's, which systemd looks for too."""
    unit = block(HOST, "ini")
    assert unit.count("/opt/dray/.venv/bin/dray ") == 3
    (file := tmp_path / "dray.service").write_text(unit.replace("/opt/dray/.venv/bin/dray ", "/bin/true "))
    assert check("systemd-analyze", "verify", "--man=no", str(file)) == ""


def test_the_proxy_nginx(tmp_path: Path) -> None:
    server = f"server {{ listen 127.0.0.1:8443; {block(HOST, 'nginx')} }}"
    (file := tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {server} }}"
    )
    check("nginx", "-t", "-c", str(file), "-p", str(tmp_path))


def test_the_proxy_caddy(tmp_path: Path) -> None:
    (site,) = re.findall(r"^```\n(dray\.example\.com \{.*?)^```", HOST, re.M | re.S)
    (file := tmp_path / "Caddyfile").write_text(site)
    check("caddy", "validate", "--adapter", "caddyfile", "--config", str(file))


def test_the_proxy_of_two_zones(tmp_path: Path) -> None:
    (file := tmp_path / "haproxy.cfg").write_text(block((DOCS / "zones.md").read_text(), "haproxy"))
    check("haproxy", "-c", "-f", str(file))
