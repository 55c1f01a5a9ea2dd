"""A router as the others see it in Redis: a sign that it lives, and an inbox for what they tell it of its flights.

One key says that the router lives, whatever the number of flights that it leads, so these need no renewal of their own.
A router without any shows nothing after a minute.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore, RedisUnavailable
from deployments.routing.queue_class import QueueClass

RENEW_S = 0.3
ALIVE_MS = 1200
"""A router that has shown no sign of life for so long is dead."""
_IDLE_S = 60.0
"""For so long a router without flights still shows that it lives: the next one costs no round trip more."""
_INBOX_MS = 30_000
_MAX_UNREAD = 4096
_TELL = """
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'wish', ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""


class Wish(msgspec.Struct, frozen=True, array_like=True):
    """To the leader of a flight: a router wants its tokens. answer_key: of the flight's answer. queue_class: the most
    urgent one among that router's clients; None: they no longer want them."""

    flight: str
    answer_key: str
    router: str
    queue_class: QueueClass | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Wish).decode


class Presence:
    """One router's sign of life and inbox."""

    def __init__(
        self, store: RedisStore, router: str, on_wish: Callable[[Wish], object], flies: Callable[[], bool]
    ) -> None:
        """router: its id. flies: whether it has a part in any flight."""
        self._store = store
        self._router = router
        self._on_wish = on_wish
        self._flies = flies
        self._tell = store.script(_TELL)
        self._one_reader = asyncio.Semaphore(1)
        self._last_id = b"0"
        self._shown_at = -RENEW_S
        self._task: asyncio.Task[None] | None = None

    async def show(self) -> None:
        """Makes sure that other routers see this one before it leads a flight. Raises RedisUnavailable."""
        if asyncio.get_running_loop().time() - self._shown_at > 2 * RENEW_S:
            await self._renew(0.0)
        self.keep()

    def keep(self) -> None:
        """Goes on showing it, for as long as this router has a part in a flight."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def lives(self, router: str, extra_s: float = 0.0) -> bool:
        """Whether a router lives. extra_s: added to the timeout. Raises RedisUnavailable."""
        return bool(await self._store.execute("EXISTS", _alive_key(router), extra_s=extra_s))

    async def tell(self, router: str, wish: Wish) -> None:
        """Tells another router of a wish. Raises RedisUnavailable."""
        arguments = (_encode(wish), _MAX_UNREAD, _INBOX_MS)
        await self._tell([_inbox_key(router)], *arguments, extra_s=BACKGROUND_EXTRA_S)

    async def _renew(self, extra_s: float) -> None:
        await self._store.execute("SET", _alive_key(self._router), "1", "PX", ALIVE_MS, extra_s=extra_s)
        self._shown_at = asyncio.get_running_loop().time()

    async def _run(self) -> None:
        """Renews the sign of life and reads the inbox, until this router has had no flight for a while."""
        loop = asyncio.get_running_loop()
        flown_at = loop.time()
        while (now := loop.time()) - flown_at < _IDLE_S or self._flies():
            flown_at = now if self._flies() else flown_at
            try:
                if now - self._shown_at > RENEW_S:
                    await self._renew(BACKGROUND_EXTRA_S)
                wait_s = max(0.0, self._shown_at + RENEW_S - loop.time())
                entries = await self._store.wait_for_entries(
                    _inbox_key(self._router), self._last_id, wait_s, self._one_reader
                )
            except RedisUnavailable:
                if self._store.closed:
                    return
                await asyncio.sleep(RENEW_S)
                continue
            for self._last_id, fields in entries:
                with suppress(msgspec.MsgspecError, KeyError):  # of another version of Dray
                    self._on_wish(_decode(fields[b"wish"]))


def _alive_key(router: str) -> str:
    return f"dray:router:{router}"


def _inbox_key(router: str) -> str:
    return f"dray:inbox:{router}"
