"""Every form of Redis URL against real servers: TLS with users, Sentinel with a failover, Cluster."""

import asyncio
import datetime
import ipaddress
import secrets
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.ports import free_port
from cluster.records import cache, teams
from cluster.records.team_records import Quota, Team
from cluster.records.team_tables import unlock
from cluster.redis_client import RedisUrlError, check_url, connect, without_password
from cluster.redis_server import find_server
from cluster.settings import CacheSettings
from deployments.cache.answers import AnswerCache, CacheControl
from deployments.cache.flight_lease import FlightLease
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.quotas import Quotas
from tests.conftest import wait_for
from tests.deployments.cache.test_answers import ANSWER, request_for, store_at
from tests.deployments.cache.test_semantic import Router
from tests.deployments.cache.test_single_flight import BATCHES, PERSON, followed, new_key

_SLOTS = 16_384


@contextmanager
def server(*options: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Redis server on its own port."""
    port = free_port()
    data_dir = folder / str(port)
    data_dir.mkdir()
    process = subprocess.Popen(
        [find_server(), *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data_dir), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port))
        yield process, port
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def certificate(folder: Path) -> tuple[Path, Path]:
    """The paths of a self-signed certificate for 127.0.0.1 and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dray test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@contextmanager
def tls_in_front_of(port: int, certificate_file: Path, key_file: Path) -> Iterator[int]:
    """A TLS port that forwards to `port`, because the bundled server does not support TLS."""
    loop = asyncio.new_event_loop()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, redis_writer), pump(redis_reader, writer))

    tls_server = loop.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield tls_server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()

    async def close() -> None:
        tls_server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(close())
    loop.close()


@contextmanager
def with_tls_and_users(folder: Path) -> Iterator[str]:
    with server(folder=folder) as (_, port):
        with redis.Redis(port=port) as admin:
            admin.execute_command("ACL", "SETUSER", "bot", "on", ">pass:word", "~dray:*", "+@all", "-@admin")
            admin.execute_command("ACL", "SETUSER", "default", "off")
        files = certificate(folder)
        with tls_in_front_of(port, *files) as secure:
            yield f"rediss://bot:pass%3Aword@127.0.0.1:{secure}/0?ssl_ca_certs={files[0]}"


@contextmanager
def with_sentinel(folder: Path) -> Iterator[str]:
    with ExitStack() as stack:
        _, first = stack.enter_context(server(folder=folder))
        stack.enter_context(server("--replicaof", "127.0.0.1", str(first), folder=folder))
        port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor answers 127.0.0.1 {first} 1\n"
            "sentinel down-after-milliseconds answers 500\nsentinel failover-timeout answers 3000\n"
        )
        process = subprocess.Popen([find_server(), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        with redis.Redis(port=first) as master:
            wait_for(lambda: master.info("replication")["connected_slaves"] == 1)
        wait_for(lambda: answers(port))
        with redis.Redis(port=port) as sentinel:
            # The sentinel asks the master for its replicas every ten seconds, and cannot fail over without one.
            wait_for(lambda: sentinel.execute_command("SENTINEL", "REPLICAS", "answers"), 20)
        yield f"redis+sentinel://127.0.0.1:{port}/answers"


@contextmanager
def with_cluster(folder: Path, nodes: int = 2) -> Iterator[str]:
    with ExitStack() as stack:
        ports = [
            stack.enter_context(server("--cluster-enabled", "yes", "--cluster-port", str(free_port()), folder=folder))[
                1
            ]
            for _ in range(nodes)
        ]
        clients = [stack.enter_context(redis.Redis(port=port, decode_responses=True)) for port in ports]
        for index, client in enumerate(clients):
            first, end = _SLOTS * index // nodes, _SLOTS * (index + 1) // nodes
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            bus = client.execute_command("CONFIG", "GET", "cluster-port")
            number = bus["cluster-port"] if isinstance(bus, dict) else bus[1]
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[index], number)
        whole = ("cluster_state:ok", f"cluster_known_nodes:{nodes}")
        wait_for(
            lambda: all(
                state in str(client.execute_command("CLUSTER", "INFO")) for client in clients for state in whole
            )
        )
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


async def use_as_router(url: str) -> None:
    """Everything that routers do with Redis."""
    stores = [store_at(url) for _ in range(2)]
    store = stores[0]
    first, second = (AnswerCache(CacheSettings(), store) for store in stores)
    keys = [first.key("m", "s", "n", request_for(str(n))) for n in range(20)]
    for key in keys:
        await first.put(key, ANSWER, CacheControl())
    # Also connects the second one: to do so may take longer than a lead lasts.
    assert all([await first.get(key) == await second.get(key) == ANSWER for key in keys])
    key = new_key()
    leader, follower = await first.lead(key, PERSON), await second.lead(key, PERSON)
    assert isinstance(leader, FlightLease) and isinstance(follower, FlightLease) and follower.joined
    for batch in BATCHES:
        leader.record(0, 0, batch)
    reading = asyncio.create_task(followed(follower))
    await first.put(key, ANSWER, CacheControl(), leader)
    assert [token for batch in await reading for token in batch.ids] == [1, 2, 3, 4, 5, 6, 7]
    assert await second.lead(key, PERSON) == await second.get(key) == ANSWER
    router = Router(url, "n")
    await router.add("What is 27 + 48?")
    assert await router.find("What's 27 + 48?") == router.key("What is 27 + 48?")
    await router.store.close()
    quotas = Quotas(store, 1)
    admission = await quotas.admit(Team("support", 0.0, quota=Quota(5, 1000, 2, 10_000)))
    await admission.reserve(100)
    await admission.settle(50)
    await admission.release()
    authenticator = Authenticator(store, "127.0.0.1", "n")
    await authenticator.refresh()
    assert authenticator.check_loaded().teams == {}
    await store.transaction(lambda pipe: pipe.hincrby("dray:{teams}:usage:2000-01-01", "a|b|requests", 1))
    for store in stores:
        await store.close()


def use_as_command(url: str) -> None:
    """Everything that commands do with Redis."""
    client = connect(url)
    try:
        name = f"team-{secrets.token_hex(4)}"
        teams.add_team(client, Team(name, 0.0))
        key = teams.create_key(client, name)
        assert teams.read_registry(client).owner(key.secret, time.time())[1] is not None
        teams.rotate_key(client, key.key.id, 60)
        assert teams.remove_team(client, name) == 2
        assert teams.read_registry(client).locked
        unlock(client)
        assert not teams.read_registry(client).locked
        stats = cache.stats(client)
        assert stats.answers["m", "n"] >= 20 and stats.bytes > 0
        [entry_key, *_] = client.scan_iter(match=cache.pattern("m"))
        entry = cache.show(client, entry_key.decode())
        assert entry is not None and entry["choices"]
        assert cache.clear(client, model="m") >= 20
        assert not cache.stats(client).answers
    finally:
        client.close()


@pytest.mark.parametrize("kind", [with_tls_and_users, with_sentinel, with_cluster])
def test_everything_works_with_every_form_of_url(kind: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="dray-r-") as folder, kind(Path(folder)) as url:
        check_url(url)
        asyncio.run(use_as_router(url))
        use_as_command(url)


def test_the_cache_survives_a_failover() -> None:
    async def work(url: str) -> None:
        store = store_at(url, timeout_s=0.3)
        answer_cache = AnswerCache(CacheSettings(), store)
        await answer_cache.put("dray:answer:m:n:{1}", ANSWER, CacheControl())
        assert await answer_cache.get("dray:answer:m:n:{1}") == ANSWER
        with redis.Redis(port=int(url.rpartition(":")[2].partition("/")[0])) as sentinel:
            _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "answers")
        with redis.Redis(port=int(port)) as master:
            assert wait_for(lambda: master.execute_command("WAIT", 1, 500) == 1)
            master.shutdown(nosave=True)
        started = time.monotonic()
        while True:
            await answer_cache.put("dray:answer:m:n:{2}", ANSWER, CacheControl())
            if await answer_cache.get("dray:answer:m:n:{2}") == ANSWER:
                break
            assert time.monotonic() - started < 20
            await asyncio.sleep(0.1)
        assert await answer_cache.get("dray:answer:m:n:{1}") == ANSWER, "the replica held the answer"
        await store.close()

    with tempfile.TemporaryDirectory(prefix="dray-r-") as folder, with_sentinel(Path(folder)) as url:
        asyncio.run(work(url))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost", "must start with redis://"),
        ("redis+sentinel://h:1", "service's name"),
        ("redis+cluster://h:1/x", "no path"),
        ("redis+cluster://h:x", "host:port"),
        ("redis+cluster://h:1?what=1", "unknown option what"),
        ("redis://h/?socket_timeout=x", "socket_timeout"),
    ],
)
def test_unsupported_urls_are_refused_with_a_reason(url: str, message: str) -> None:
    with pytest.raises(RedisUrlError, match=message):
        check_url(url)


def test_a_masked_url_has_no_password() -> None:
    masked = without_password("rediss+sentinel://bot:secret@h:1,h:2/s?sentinel_password=other&ssl_ca_certs=/ca")
    assert "secret" not in masked and "other" not in masked
    assert masked == "rediss+sentinel://bot:***@h:1,h:2/s?sentinel_password=***&ssl_ca_certs=/ca"


@pytest.mark.parametrize("url", ["unix:///run/dray/redis.sock", "redis://h:1/0", "redis://bot@h:1/0?db=1"])
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert without_password(url) == url
