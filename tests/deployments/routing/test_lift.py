"""A waiting request takes the best queue class of all requests that wait for its tokens."""

import asyncio
from collections.abc import Callable, Coroutine

from deployments.routing.fair_queue import FairQueue, Slot
from deployments.routing.queue_class import QueueClass, TokenCost


class Waiters:
    """Requests in a queue whose only slot is taken. order: the names of the requests that got the slot, in turn."""

    def __init__(self) -> None:
        self.queue = FairQueue(1, 1000, 10**6)
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Slot:
        return await self.queue.acquire("occupant", 1.0, TokenCost(1, 1))

    async def ask(self, name: str, queue_class: QueueClass) -> TokenCost:
        """Adds a request. name: its name in `order`."""
        cost = TokenCost(10, 90, queue_class.batch)

        async def wait() -> None:
            slot = await self.queue.acquire(queue_class.team, queue_class.weight, cost)
            self.order.append(name)
            await asyncio.sleep(0)
            slot.release(100)

        self.tasks.append(asyncio.create_task(wait()))
        await asyncio.sleep(0)
        return cost

    async def finish(self, slot: Slot) -> list[str]:
        """Releases the slot; returns the order in which the requests get it."""
        slot.release(1)
        await asyncio.gather(*self.tasks)
        assert (self.queue.running, self.queue.queued, self.queue.queued_tokens) == (0, 0, 0)
        return self.order


def run(work: Callable[[Waiters], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(Waiters()), 10))


def person(team: str, weight: float = 1.0) -> QueueClass:
    return QueueClass(team, weight, batch=False)


def batch(team: str) -> QueueClass:
    return QueueClass(team, 1.0, batch=True)


def test_a_batch_request_that_a_person_joins_waits_among_people() -> None:
    async def work(waiters: Waiters) -> None:
        slot = await waiters.start()
        for name in ("batch", "joined"):
            joined = await waiters.ask(name, batch("nightly"))
        for number in range(3):
            await waiters.ask(f"person {number}", person("support"))
        waiters.queue.lift(joined, person("support"))
        assert await waiters.finish(slot) == ["person 0", "joined", "person 1", "person 2", "batch"]

    run(work)


def test_a_flooding_teams_request_takes_the_turn_of_a_quiet_team_that_joins_it() -> None:
    async def work(waiters: Waiters) -> None:
        slot = await waiters.start()
        costs = [await waiters.ask(f"flood {number}", person("flooding")) for number in range(4)]
        waiters.queue.lift(costs[3], person("quiet"))
        await waiters.ask("quiet", person("quiet"))
        await waiters.ask("flood 4", person("flooding"))
        order = await waiters.finish(slot)
        assert order[:2] == ["flood 0", "flood 3"]
        assert order.index("quiet") > order.index("flood 1"), "the quiet team has used its turn"
        assert order[-1] == "flood 4" and order.index("flood 4") == 5

    run(work)


def test_a_joining_teams_weight_makes_the_turn_earlier() -> None:
    async def work(waiters: Waiters) -> None:
        slot = await waiters.start()
        light = [await waiters.ask(f"light {number}", person("light")) for number in range(3)]
        await waiters.ask("heavy", person("heavy", weight=10))
        waiters.queue.lift(light[2], person("heavy", weight=10))
        order = await waiters.finish(slot)
        assert order.index("light 2") < order.index("light 1")

    run(work)


def test_a_worse_class_or_a_late_one_changes_nothing() -> None:
    async def work(waiters: Waiters) -> None:
        slot = await waiters.start()
        costs = [await waiters.ask(f"quiet {number}", person("quiet")) for number in range(2)]
        for number in range(3):
            await waiters.ask(f"flood {number}", person("flooding"))
        for queue_class in (batch("nightly"), person("flooding"), batch("quiet"), person("quiet")):
            waiters.queue.lift(costs[0], queue_class)
        waiters.queue.lift(TokenCost(10, 90), person("any"))
        cancelled = await waiters.ask("cancelled", person("cancelled"))
        waiters.tasks.pop().cancel()
        await asyncio.sleep(0)
        waiters.queue.lift(cancelled, person("other"))
        order = await waiters.finish(slot)
        assert order == ["quiet 0", "flood 0", "quiet 1", "flood 1", "flood 2"]
        waiters.queue.lift(costs[0], person("any"))
        assert not waiters.queue._teams

    run(work)


def test_a_lifted_request_that_leaves_costs_no_other_team_its_turn() -> None:
    async def work(waiters: Waiters) -> None:
        slot = await waiters.start()
        costs = [await waiters.ask(f"flood {number}", batch("flooding")) for number in range(3)]
        waiters.queue.lift(costs[1], person("quiet"))
        waiters.tasks.pop(1).cancel()
        await asyncio.sleep(0)
        await waiters.ask("quiet", person("quiet"))
        assert await waiters.finish(slot) == ["quiet", "flood 0", "flood 2"]

    run(work)


def test_a_lifted_batch_request_does_not_count_as_a_batch() -> None:
    async def work() -> None:
        queue = FairQueue(2, 100, 10**6)
        slots = [await queue.acquire("occupant", 1.0, TokenCost(1, 1)) for _ in range(2)]
        costs = [TokenCost(1, 1, batch=True) for _ in range(3)]
        waiting = [asyncio.create_task(queue.acquire("nightly", 1.0, cost)) for cost in costs]
        await asyncio.sleep(0)
        lifted = queue.lift(costs[2], person("support"))
        assert not lifted.batch and queue.lift(lifted, batch("nightly")) is not costs[2]
        for slot in slots:
            slot.release(1)
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True, False, True], "a batch request, and a person's request"
        (await waiting[2]).release(1)
        await asyncio.sleep(0)
        assert not waiting[1].done()
        (await waiting[0]).release(1)
        (await waiting[1]).release(1)
        assert (queue.running, queue.queued, queue._running_batches) == (0, 0, 0)

    asyncio.run(asyncio.wait_for(work(), 60))
