"""Whose turn it is: by weight and tokens, people before batches, and a flood waits behind itself."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine

import pytest

from deployments.common.errors import ApiError
from deployments.routing.fair_queue import ANYONE, FairQueue, Slot, TokenCost


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work()

    asyncio.run(bounded())


class Served:
    """Asks for turns, and ends them one by one in the order in which they were given."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.order: list[str] = []
        self.turns: list[tuple[str, Slot, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(
        self, team: str, count: int, cost: int = 100, weight: float = 1.0, batch: bool = False, prompt: int = 10
    ) -> None:
        async def one() -> None:
            turn = await self.queue.acquire(team, weight, TokenCost(prompt, cost - prompt, batch))
            self.order.append(team)
            self.turns.append((team, turn, cost))

        self.tasks += [asyncio.create_task(one()) for _ in range(count)]
        await asyncio.sleep(0.01)

    async def end(self, count: int = 1) -> None:
        for _ in range(count):
            _, turn, cost = self.turns.pop(0)
            turn.release(cost)
            await asyncio.sleep(0)
            await asyncio.sleep(0)


def test_a_flood_waits_behind_itself() -> None:
    async def work() -> None:
        served = Served(FairQueue(4, 1000, 10**6))
        await served.ask("flood", 200)
        await served.ask("quiet", 1)
        assert served.order == ["flood"] * 4
        await served.end()
        assert served.order[-1] == "quiet", "the next free place is the quiet team's"
        await served.ask("quiet", 3)
        await served.end(8)
        assert served.order[5:].count("quiet") == 3

    run(work)


def test_no_team_takes_nearly_all_places_while_others_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        served = Served(FairQueue(32, 1000, 10**6))
        await served.ask("quiet", 1)
        await served.ask("flood", 60)
        assert Counter(served.order) == {"quiet": 1, "flood": 20}
        await served.end(1)
        assert served.queue.running == 20, "it asked a moment ago"
        monkeypatch.setattr("deployments.routing.fair_queue._LATELY_S", -1.0)
        await served.end(1)
        assert served.queue.running == 28, "nobody else asks any more, and a few are kept"

    async def both_flood() -> None:
        served = Served(FairQueue(32, 1000, 10**6))
        await served.ask("one", 60)
        await served.ask("other", 60)
        await served.end(28)
        await served.end(10)
        assert served.queue.running == 28, "nothing is left idle but the few"

    async def weighty() -> None:
        served = Served(FairQueue(32, 1000, 10**6))
        await served.ask("light", 1)
        await served.ask("heavy", 60, weight=3.0)
        assert Counter(served.order) == {"light": 1, "heavy": 24}, "its weight gives it more"

    run(both_flood)
    run(weighty)
    run(work)


def test_teams_share_by_weight_and_by_tokens() -> None:
    async def work() -> None:
        served = Served(FairQueue(2, 1000, 10**6))
        await served.ask("heavy", 100, weight=3.0)
        await served.ask("light", 100)
        await served.ask("long", 100, cost=400)
        await served.end(100)
        seen = Counter(served.order[10:])
        assert 2.5 < seen["heavy"] / seen["light"] < 3.5
        assert 3 < seen["light"] / seen["long"] < 5, "a long answer costs its tokens"

    run(work)


def test_people_go_before_batches_which_leave_places_free() -> None:
    async def work() -> None:
        served = Served(FairQueue(4, 1000, 10**6))
        await served.ask("warm", 20, batch=True)
        assert served.order == ["warm"] * 2, "batches take half"
        await served.ask("people", 2)
        assert served.order[2:] == ["people"] * 2
        await served.ask("people", 5)
        await served.end(5)
        assert served.order[4:9] == ["people"] * 5

    run(work)


def test_a_place_is_kept_for_teams_with_nothing_under_way() -> None:
    async def work() -> None:
        served = Served(FairQueue(16, 1000, 10**6))
        await served.ask("flood", 50)
        assert len(served.order) == 14
        await served.ask("quiet", 1)
        assert served.order[14:] == ["quiet"]
        alone = Served(FairQueue(16, 1000, 10**6))
        await alone.ask(ANYONE, 50)
        assert len(alone.order) == 16, "without teams nothing is kept"

    run(work)


def test_beyond_the_bound_the_largest_team_loses_its_last() -> None:
    async def work() -> None:
        served = Served(FairQueue(1, 10, 10**6))
        await served.ask("flood", 11)
        await served.ask("flood", 1)
        with pytest.raises(ApiError, match="waiting") as refused:
            await served.tasks[-1]
        assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) >= 1
        await served.ask("quiet", 1)
        with pytest.raises(ApiError):
            await served.tasks[10]
        await served.end()
        assert served.order == ["flood", "quiet"]

    run(work)


def test_who_leaves_gives_place_and_costs_nothing() -> None:
    async def work() -> None:
        queue = FairQueue(1, 10, 10**6)
        served = Served(queue)
        await served.ask("one", 3)
        served.tasks[1].cancel()
        await asyncio.wait(served.tasks[1:2])
        assert (queue.running, queue.waiting) == (1, 1)
        # Given and left in the same moment: the place must not be lost.
        _, turn, _ = served.turns.pop()
        turn.release(100)
        served.tasks[2].cancel()
        await asyncio.wait(served.tasks[2:])
        assert (queue.running, queue.waiting) == (0, 0)
        await served.ask("two", 1)
        assert served.order[-1] == "two"

    run(work)


def test_no_more_prompts_are_handed_over_than_a_step_takes() -> None:
    async def work() -> None:
        queue = FairQueue(32, 1000, 100)
        served = Served(queue)
        await served.ask("flood", 20, prompt=40)
        assert len(served.order) == 2
        await served.ask("quiet", 1, prompt=40)
        served.turns[0][1].prefill_done()
        await asyncio.sleep(0.01)
        assert served.order == ["flood", "flood", "quiet"]
        for _, turn, _ in tuple(served.turns):
            turn.prefill_done()
        await asyncio.sleep(0.01)
        assert len(served.order) == 5
        await served.ask("long", 1, prompt=5000, cost=6000)
        while "long" not in served.order:
            for _, turn, _ in tuple(served.turns):
                turn.prefill_done()
            await asyncio.sleep(0.01)
        assert queue.running == len(served.order), "a prompt beyond the bound goes alone"

    run(work)


def test_who_leaves_in_the_moment_when_all_ends_or_is_refused_breaks_nothing() -> None:
    async def work() -> None:
        queue = FairQueue(2, 2, 10**6)
        served = Served(queue)
        await served.ask("a", 2)
        await served.ask("b", 1)
        # Cancelled, and not yet run, while the last turns end: its lane must still be there.
        served.tasks[2].cancel()
        for _, turn, _ in served.turns:
            turn.release(1)
        assert isinstance((await asyncio.gather(*served.tasks, return_exceptions=True))[2], asyncio.CancelledError)
        assert (queue.running, queue.waiting) == (0, 0)

        again = Served(queue)
        await again.ask("a", 4)
        late = asyncio.create_task(queue.acquire("b", 1.0, TokenCost(1, 1)))
        await asyncio.sleep(0)  # it makes room: the last of the larger team is refused, and has not heard of it
        again.tasks[3].cancel()
        await asyncio.wait([again.tasks[3]])
        assert (queue.running, queue.waiting) == (2, 2)
        for _ in range(2):
            await again.end()
        await again.end()
        (await late).release(1)
        await asyncio.sleep(0.01)
        assert (queue.running, queue.waiting) == (0, 0)

    run(work)
