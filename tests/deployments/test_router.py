"""Where a router finds its Redis when its arguments do not say."""

import asyncio
from typing import Any, cast

import pytest

from cluster.serve_config import RouterArgs
from cluster.settings import Settings
from deployments import router


class Reached(Exception):
    """The router has come to its first Redis; the message is the URL."""


@pytest.mark.parametrize(("given", "found"), [("", "rediss://:x@kept:1"), ("redis://told:1", "redis://told:1")])
def test_a_url_that_is_not_in_the_arguments_comes_from_the_environment(
    given: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(name: str, url: str, *more: Any) -> None:
        raise Reached(f"{name} {url}")

    monkeypatch.setattr(router, "RedisStore", store)
    monkeypatch.setenv("DRAY_TEAMS__URL", "rediss://:x@kept:1")
    args = RouterArgs(settings=Settings(), redis_url="", teams_url=given, engines={})
    made, start = object.__new__(router.Router), cast(Any, router.Router.__init__)
    with pytest.raises(Reached, match=f"teams {found}"):
        # Serve awaits it: @serve.ingress makes it a coroutine.
        asyncio.run(start(made, args.model_dump(mode="json")))
