"""The configuration of the three Redis servers, read by a real server, and the Secrets that the manifests need."""

import base64
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import yaml
from cryptography import x509
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.kubernetes.render import kustomization, render
from cluster.ports import free_port
from cluster.redis_client import connect
from cluster.redis_server import find_server
from tests.conftest import wait_for
from tests.k8s.apply_rules import refused
from tests.k8s.checks import numbers, pods, upgrades
from tests.k8s.manifests import K8S, Document, cluster_of, environment, kustomize, of_kind, settings_of
from tests.k8s.references import SECRETS, references
from tests.k8s.schemas import schemas

AT_ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def rendered() -> list[Document]:
    return kustomize(K8S / "overlays" / "kind")


def configuration(documents: list[Document], server: str, folder: Path, port: int) -> tuple[str, str]:
    """Writes the server's files into the folder; returns its command and its memory limit.

    Leaves out TLS, which the bundled server lacks.
    """
    (config,) = (doc for doc in of_kind(documents, "ConfigMap") if doc["metadata"]["name"].startswith(f"{server}-"))
    for name, text in config["data"].items():
        lines = [line for line in text.splitlines() if not line.startswith(("tls-", "port "))]
        (folder / name).write_text("\n".join(lines) + "\n")
    with (folder / "common.conf").open("a") as file:
        file.write(f"port {port}\n")
    stateful_sets = of_kind(documents, "StatefulSet")
    (stateful_set,) = (document for document in stateful_sets if document["metadata"]["name"] == server)
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    command = container["command"][2].replace("/etc/redis/", f"{folder}/").replace("valkey-server", find_server())
    command = command.replace("$MAXMEMORY", environment(container)["MAXMEMORY"])
    data = (folder / "common.conf").read_text().replace("dir /data", f"dir {folder}")
    (folder / "common.conf").write_text(data)
    return command, container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("server", "policy", "persistent"),
    [("dray-answers", "allkeys-lfu", False), ("dray-teams", "noeviction", True), ("dray-gcs", "noeviction", True)],
)
def test_a_server_starts_with_its_configuration(
    server: str, policy: str, persistent: bool, rendered: list[Document], tmp_path: Path
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
            config = client.config_get("maxmemory*") | client.config_get("appendonly")
            assert config["maxmemory-policy"] == policy
            assert config["appendonly"] == ("yes" if persistent else "no")
            # Client buffers, and the pages that a rewrite of the file copies, need memory beside the data.
            limit = int(memory.removesuffix("Mi")) * 2**20
            assert int(config["maxmemory"]) * 1.4 < limit
        with redis.Redis(port=port, retry=AT_ONCE) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert b"s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        # On SIGTERM it must end by itself, as the first process of a pod, with its data on disk.
        process.terminate()
        assert process.wait(10) == 0
        assert persistent == (tmp_path / "appendonlydir").is_dir()
    finally:
        process.kill()
        process.wait()


@contextmanager
def running(command: str, password: str, port: int) -> Iterator[Callable[[str], redis.Redis]]:
    """The server with this password, until the block ends as a pod does. Yields how to connect with any password."""
    process = subprocess.Popen(["sh", "-c", command], env={"PASSWORD": password, "PATH": "/usr/bin:/bin"})

    def client_with(given: str) -> redis.Redis:
        return redis.Redis(port=port, password=given, retry=AT_ONCE)

    def answers() -> bool:
        with client_with(password) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    try:
        wait_for(answers)
        yield client_with
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("server", ["dray-teams", "dray-gcs"])
def test_a_rotated_password_opens_the_same_data_and_the_old_one_nothing(
    server: str, rendered: list[Document], tmp_path: Path
) -> None:
    port = free_port()
    command, _ = configuration(rendered, server, tmp_path, port)
    with running(command, "before", port) as client_with, client_with("before") as client:
        client.set("kept", "1")
    with (
        running(command, "after", port) as client_with,
        client_with("after") as client,
        client_with("before") as stranger,
    ):
        assert client.get("kept") == b"1"
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_a_changed_configuration_restarts_its_server_and_no_other(tmp_path: Path) -> None:
    shutil.copytree(K8S / "base" / "redis", tmp_path / "redis")
    kustomization = {"resources": [f"redis/{name}" for name in ("answers", "teams", "gcs")]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    before = kustomize(tmp_path)
    config = tmp_path / "redis" / "answers" / "redis.conf"
    config.write_text(config.read_text().replace("allkeys-lfu", "allkeys-lru"))
    after = kustomize(tmp_path)
    changed = [
        old["metadata"]["name"]
        for old, new in zip(of_kind(before, "StatefulSet"), of_kind(after, "StatefulSet"), strict=True)
        if old["spec"]["template"] != new["spec"]["template"]
    ]
    assert changed == ["dray-answers"]
    assert refused(before, after) == []


SIZES = {
    "dray-answers": (4096, "6144Mi", None),
    "dray-teams": (300, "512Mi", "10Gi"),
    "dray-gcs": (1000, "1536Mi", "3Gi"),
}
"""Of the settings below: memory for data in MiB, memory of the pod, disk."""


def test_sizes_are_settings(tmp_path: Path) -> None:
    chosen = {"answers_memory_mb": 4096, "teams_memory_mb": 300, "gcs_memory_mb": 1000}
    disks = {"teams_disk_mb": 10 * 1024, "gcs_disk_mb": 3000}
    settings = settings_of("kind")
    settings = settings.model_copy(update={"kubernetes": settings.kubernetes.model_copy(update=chosen | disks)})
    files = render(settings, K8S / "base")
    up = "../" * (len(tmp_path.resolve().parts) - 1) + str(K8S)[1:]
    (tmp_path / "kustomization.yaml").write_text(kustomization(files, f"{up}/base"))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    documents, before = kustomize(tmp_path), kustomize(K8S / "overlays" / "kind")
    assert [fault for check in (schemas, pods, references) for fault in check(documents, settings)] == []
    servers = {document["metadata"]["name"]: document["spec"] for document in of_kind(documents, "StatefulSet")}
    assert servers.keys() == SIZES.keys()
    for name, (data_mb, pod, disk) in SIZES.items():
        [container] = servers[name]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] == pod
        [claim] = servers[name].get("volumeClaimTemplates") or [None]
        assert (claim and claim["spec"]["resources"]["requests"]["storage"]) == disk
        port, folder = free_port(), tmp_path / name
        folder.mkdir()
        command, _ = configuration(documents, name, folder, port)
        with running(command, "s3cret", port) as client_with, client_with("s3cret") as client:
            assert client.config_get("maxmemory") == {"maxmemory": str(data_mb * 2**20)}
    # Nothing of a StatefulSet's claims may change, so a patch must not lose their labels.
    for old, new in zip(of_kind(before, "StatefulSet"), of_kind(documents, "StatefulSet"), strict=True):
        for was, now in zip(*(s["spec"].get("volumeClaimTemplates", []) for s in (old, new)), strict=True):
            assert was["metadata"] == now["metadata"]


def test_external_servers_replace_the_three_pods(tmp_path: Path) -> None:
    up = "../" * (len(tmp_path.resolve().parts) - 1) + str(K8S)[1:]
    overlay = {"resources": [f"{up}/overlays/production"], "components": [f"{up}/components/external-redis"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    documents = kustomize(tmp_path)
    settings = settings_of("production")
    assert [fault for check in (schemas, pods, numbers, upgrades) for fault in check(documents, settings)] == []
    assert not of_kind(documents, "StatefulSet") + of_kind(documents, "Service") + of_kind(documents, "ConfigMap")
    routers = cluster_of(documents)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    sources = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in routers["env"] if "valueFrom" in entry}
    assert sources == {
        "DRAY_CACHE__URL": {"name": "dray-redis-urls", "key": "answers"},
        "DRAY_TEAMS__URL": {"name": "dray-redis-urls", "key": "teams"},
    }
    text = yaml.safe_dump_all(documents)
    assert not [server for server in ("dray-answers", "dray-teams", "dray-gcs:") if server in text]
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    ports = [port["port"] for name in ("dray-to-redis", "dray-to-gcs") for port in policies[name]["egress"][0]["ports"]]
    assert ports == [6379, 26379] * 2
    # The form of URL that the component's own comment gives, with Sentinel.
    comment = (K8S / "components" / "external-redis" / "kustomization.yaml").read_text()
    [url] = [word.rstrip("),.") for word in comment.split() if word.startswith("rediss+sentinel://")]
    assert connect(url, timeout_s=1)


@pytest.mark.skipif(not shutil.which("openssl") or not shutil.which("kubectl"), reason="needs openssl and kubectl")
def test_the_script_creates_the_secrets_that_manifests_name() -> None:
    done = subprocess.run([K8S / "secrets.sh", "team-a"], capture_output=True, text=True, check=True)
    secrets = {secret["metadata"]["name"]: secret for secret in yaml.safe_load_all(done.stdout) if secret}
    assert {name: set(secret["data"]) for name, secret in secrets.items()} == SECRETS
    assert {secret["metadata"]["namespace"] for secret in secrets.values()} == {"team-a"}
    data = [secret["data"] for secret in secrets.values()]
    passwords = {base64.b64decode(fields["password"]) for fields in data if "password" in fields}
    assert len(passwords) == 3
    assert all(password.isalnum() and len(password) == 64 for password in passwords)
    certificate = x509.load_pem_x509_certificate(base64.b64decode(secrets["dray-redis-tls"]["data"]["tls.crt"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"dray-answers", "dray-teams", "dray-gcs"} <= set(names.get_values_for_type(x509.DNSName))
