"""Bodies that arrive slowly or never."""

import asyncio

import pytest
from starlette.requests import Request as HttpRequest
from starlette.types import Message

from deployments.api.http import error_response, read_body, receive_within
from deployments.common.errors import ApiError

TIMEOUT_S = 0.05


async def drip() -> Message:
    """Sends a byte at a time, and never the last."""
    await asyncio.sleep(TIMEOUT_S / 10)
    return {"type": "http.request", "body": b" ", "more_body": True}


async def silence() -> Message:
    """Sends nothing."""
    return await asyncio.Future()


async def whole() -> Message:
    """Sends all at once."""
    return {"type": "http.request", "body": b"{}", "more_body": False}


@pytest.mark.parametrize("receive", [drip, silence])
def test_a_body_that_does_not_arrive_in_time_is_refused(receive: object) -> None:
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    http = HttpRequest(scope, receive)  # type: ignore[arg-type]
    with pytest.raises(ApiError) as raised:
        asyncio.run(asyncio.wait_for(read_body(http, {}, 1_000_000, TIMEOUT_S), 100 * TIMEOUT_S))
    assert (raised.value.status, raised.value.body.error.code) == (408, "request_timeout")
    # What still comes of the body must not be taken for the next request.
    assert error_response(http, raised.value).headers["connection"] == "close"


@pytest.mark.parametrize("receive", [drip, silence])
def test_a_slow_client_counts_as_gone(receive: object) -> None:
    async def receive_all() -> Message:
        within = receive_within(receive, TIMEOUT_S)  # type: ignore[arg-type]
        while (message := await within())["type"] == "http.request":
            pass
        return message

    assert asyncio.run(asyncio.wait_for(receive_all(), 100 * TIMEOUT_S)) == {"type": "http.disconnect"}


def test_waiting_after_the_body_has_no_limit() -> None:
    async def receive_twice() -> None:
        messages = iter([whole(), asyncio.sleep(3 * TIMEOUT_S, {"type": "http.disconnect"})])
        within = receive_within(lambda: next(messages), TIMEOUT_S)
        started = asyncio.get_running_loop().time()
        assert (await within())["type"] == "http.request"
        assert (await within())["type"] == "http.disconnect"
        assert asyncio.get_running_loop().time() - started >= 3 * TIMEOUT_S

    asyncio.run(receive_twice())
