"""The three servers' configuration, read by a real server; and the Secrets that the manifests count on."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
import redis
import yaml
from cryptography import x509
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.ports import free_port
from cluster.redis_server import find_server
from tests.conftest import wait_for
from tests.k8s.manifests import K8S, Document, kustomize, of_kind
from tests.k8s.references import SECRETS

AT_ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def rendered() -> list[Document]:
    return kustomize(K8S / "overlays" / "kind")


def configuration(documents: list[Document], server: str, folder: Path, port: int) -> tuple[str, str]:
    """The server's own command, with its files here; without TLS, which the bundled server has not."""
    (config,) = (one for one in of_kind(documents, "ConfigMap") if one["metadata"]["name"] == server)
    for name, text in config["data"].items():
        kept = [line for line in text.splitlines() if not line.startswith(("tls-", "port "))]
        (folder / name).write_text("\n".join(kept) + "\n")
    with (folder / "common.conf").open("a") as file:
        file.write(f"port {port}\n")
    (stateful,) = (one for one in of_kind(documents, "StatefulSet") if one["metadata"]["name"] == server)
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    text = container["command"][2].replace("/etc/redis/", f"{folder}/").replace("valkey-server", find_server())
    data = (folder / "common.conf").read_text().replace("dir /data", f"dir {folder}")
    (folder / "common.conf").write_text(data)
    return text, container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("server", "policy", "lasting"),
    [("dray-answers", "allkeys-lfu", False), ("dray-teams", "noeviction", True), ("dray-gcs", "noeviction", True)],
)
def test_a_server_starts_as_it_is_meant(
    server: str, policy: str, lasting: bool, rendered: list[Document], tmp_path: Path
) -> None:
    port = free_port()
    command, memory = configuration(rendered, server, tmp_path, port)
    process = subprocess.Popen(["sh", "-c", command], env={"PASSWORD": "s3cret", "PATH": "/usr/bin:/bin"})
    try:
        with redis.Redis(port=port, password="s3cret", retry=AT_ONCE) as client:

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return False

            wait_for(answers)
            told = client.config_get("maxmemory*") | client.config_get("appendonly")
            assert told["maxmemory-policy"] == policy
            assert told["appendonly"] == ("yes" if lasting else "no")
            # Beside the data: buffers of clients, and what a rewrite of the file copies.
            limit = int(memory.removesuffix("Mi")) * 2**20
            assert int(told["maxmemory"]) * 1.4 < limit
        with redis.Redis(port=port, retry=AT_ONCE) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert b"s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        # It ends as a pod's first process must: at once, by itself, what it knows on disk.
        process.terminate()
        assert process.wait(10) == 0
        assert lasting == (tmp_path / "appendonlydir").is_dir()
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not shutil.which("openssl") or not shutil.which("kubectl"), reason="needs openssl and kubectl")
def test_the_script_makes_the_secrets_that_manifests_name() -> None:
    done = subprocess.run([K8S / "secrets.sh", "team-a"], capture_output=True, text=True, check=True)
    made = {one["metadata"]["name"]: one for one in yaml.safe_load_all(done.stdout) if one}
    assert {name: set(one["data"]) for name, one in made.items()} == SECRETS
    assert {one["metadata"]["namespace"] for one in made.values()} == {"team-a"}
    passwords = {base64.b64decode(one["data"]["password"]) for one in made.values() if "password" in one["data"]}
    assert len(passwords) == 3
    assert all(password.isalnum() and len(password) == 64 for password in passwords)
    certificate = x509.load_pem_x509_certificate(base64.b64decode(made["dray-redis-tls"]["data"]["tls.crt"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"dray-answers", "dray-teams", "dray-gcs"} <= set(names.get_values_for_type(x509.DNSName))
