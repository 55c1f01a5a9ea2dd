"""What encryption adds to a cache hit, and a sign-on token to a request beside a key: the work of a router's process.

The variants run in turn in one process. For the whole path: `python -m benchmarks.cache_hit`, with and without
`--encrypted`.
"""

import argparse
import asyncio
import base64
import json
import os
import time
from collections.abc import Callable
from statistics import median

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from benchmarks.service import report
from cluster.records.cache import pack, unpack
from cluster.settings import PRIVACY_KEYS, SignOnSettings
from deployments.cache.answers import _decode, _encode
from deployments.common.types import Choice, GenerationResult, Usage
from deployments.tenancy.provider import Provider
from deployments.tenancy.sign_on import SignOn

_ISSUER = "http://127.0.0.1:1"
_KEY = RSAKey.generate_key(2048, {"kid": "one"})
_TEXT = "Of 35 heads, 23 are rabbits' and 12 are chickens', for 94 feet in all. "


class _Documents(Provider):
    """A provider that needs no network."""

    async def get(self, url: str) -> bytes:
        keys = KeySet([_KEY]).as_dict(private=False)
        return json.dumps(
            keys if url.endswith("/keys") else {"issuer": _ISSUER, "jwks_uri": f"{_ISSUER}/keys"}
        ).encode()


def microseconds(work: Callable[[], object], seconds: float) -> float:
    """Of one call."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for _ in range(100):
            work()
        calls += 100
    return took / calls * 1e6


def reading(characters: int) -> dict[str, Callable[[], object]]:
    """Reading a stored answer, plain and encrypted."""
    text = (_TEXT * (characters // len(_TEXT) + 1))[:characters]
    body = _encode(GenerationResult((Choice("", text, "stop"),), Usage(20, characters // 4, 0, 0), time.time()))
    keys, stored = base64.b64encode(os.urandom(32)).decode(), {}
    for name, value in (("plain", ""), ("encrypted", keys)):
        os.environ[PRIVACY_KEYS] = value
        stored[name] = (value, pack(body, "place"))

    def read(value: str, packed: bytes) -> object:
        os.environ[PRIVACY_KEYS] = value
        return _decode(unpack(packed, "place") or b"")

    return {name: lambda one=one: read(*one) for name, one in stored.items()}  # type: ignore[misc]


def identifying() -> dict[str, Callable[[], object]]:
    """A token that is known, and one that is checked each time."""
    settings = SignOnSettings(issuer=_ISSUER, audiences=("dray",), teams=("bots=support",))
    known, checked = (SignOn(settings, _Documents(_ISSUER)) for _ in range(2))
    claims = {"iss": _ISSUER, "aud": "dray", "sub": "alice", "groups": ["bots"], "exp": int(time.time()) + 3600}
    token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, _KEY)
    for one in (known, checked):
        asyncio.run(one.prepare(token))

    def check() -> object:
        checked._known.clear()
        return checked.identity(token)

    return {"known token": lambda: known.identity(token), "new token": check}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each variant in each round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for title, variants in (
        ("answer of 500 characters", reading(500)),
        ("answer of 8,000 characters", reading(8000)),
        ("identity", identifying()),
    ):
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, work in variants.items():
                times[name].append(microseconds(work, args.seconds))
        rows += [[title, name, f"{median(took):.1f}"] for name, took in times.items()]
    print(report("Encryption and sign-on, in a router's process", ["work", "variant", "µs"], rows))


if __name__ == "__main__":
    main()
