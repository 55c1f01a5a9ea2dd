"""Who gets the next slot: by weight and tokens, people before batches, and a flood waits behind itself."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine

import pytest

from deployments.common.errors import ApiError
from deployments.routing.fair_queue import ANYONE, FairQueue, Slot
from deployments.routing.queue_class import TokenCost
from tests.deployments.routing.clock import Clock


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


async def settle() -> None:
    """Lets every task run that is ready."""
    for _ in range(10):
        await asyncio.sleep(0)


class Teams:
    """Requests of several teams. Slots are released in the order in which they were granted."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.order: list[str] = []
        """The team of each slot that was granted."""
        self.slots: list[tuple[Slot, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(
        self, team: str, count: int, cost: int = 100, weight: float = 1.0, batch: bool = False, prompt: int = 10
    ) -> None:
        async def request() -> None:
            slot = await self.queue.acquire(team, weight, TokenCost(prompt, cost - prompt, batch))
            self.order.append(team)
            self.slots.append((slot, cost))

        self.tasks += [asyncio.create_task(request()) for _ in range(count)]
        await settle()

    async def release(self, count: int = 1) -> None:
        for _ in range(count):
            slot, cost = self.slots.pop(0)
            slot.release(cost)
            await settle()

    async def end_prefills(self) -> None:
        for slot, _ in tuple(self.slots):
            slot.prefill_done()
        await settle()


def test_a_flood_waits_behind_itself() -> None:
    async def work() -> None:
        teams = Teams(FairQueue(4, 1000, 10**6))
        await teams.ask("flood", 200)
        await teams.ask("quiet", 1)
        assert teams.order == ["flood"] * 4
        await teams.release()
        assert teams.order[-1] == "quiet", "the next free slot is the quiet team's"
        await teams.ask("quiet", 3)
        await teams.release(8)
        assert teams.order[5:].count("quiet") == 3

    run(work)


def test_no_team_takes_nearly_all_slots_while_others_ask() -> None:
    async def work() -> None:
        clock = Clock()
        teams = Teams(FairQueue(32, 1000, 10**6, clock=clock))
        await teams.ask("quiet", 1)
        await teams.ask("flood", 60)
        assert Counter(teams.order) == {"quiet": 1, "flood": 20}
        clock.now += 60
        await teams.release(1)
        assert teams.queue.running == 20, "the quiet team asked a minute ago"
        clock.now += 1
        await teams.release(1)
        assert teams.queue.running == 28, "no other team asks any more, and a few slots are reserved"

    async def both_flood() -> None:
        teams = Teams(FairQueue(32, 1000, 10**6))
        await teams.ask("one", 60)
        await teams.ask("other", 60)
        await teams.release(28)
        await teams.release(10)
        assert teams.queue.running == 28, "only reserved slots are idle"

    async def weighty() -> None:
        teams = Teams(FairQueue(32, 1000, 10**6))
        await teams.ask("light", 1)
        await teams.ask("heavy", 60, weight=3.0)
        assert Counter(teams.order) == {"light": 1, "heavy": 24}, "a heavier team may take more"

    run(both_flood)
    run(weighty)
    run(work)


def test_teams_share_by_weight_and_by_tokens() -> None:
    async def work() -> None:
        teams = Teams(FairQueue(2, 1000, 10**6))
        await teams.ask("heavy", 100, weight=3.0)
        await teams.ask("light", 100)
        await teams.ask("long", 100, cost=400)
        await teams.release(100)
        served = Counter(teams.order[10:])
        assert 2.5 < served["heavy"] / served["light"] < 3.5
        assert 3 < served["light"] / served["long"] < 5, "a long answer costs its tokens"

    run(work)


def test_queued_requests_count_by_their_tokens_whatever_the_weight() -> None:
    async def work() -> None:
        clock = Clock()
        teams = Teams(FairQueue(1, 1000, 10**6, clock=clock))
        await teams.ask("heavy", 4, weight=4.0)
        assert teams.queue.queued_tokens == 300
        clock.now += 10
        await teams.release()  # 100 tokens in 10 s
        assert teams.queue.queued_tokens == 200 and teams.queue.wait_s() == 20

    run(work)


def test_people_go_before_batches_which_leave_slots_free() -> None:
    async def work() -> None:
        teams = Teams(FairQueue(4, 1000, 10**6))
        await teams.ask("warm", 20, batch=True)
        assert teams.order == ["warm"] * 2, "batches take half"
        await teams.ask("people", 2)
        assert teams.order[2:] == ["people"] * 2
        await teams.ask("people", 5)
        await teams.release(5)
        assert teams.order[4:9] == ["people"] * 5

    run(work)


def test_batches_leave_a_few_slots_free_while_nobody_asks_and_half_afterwards() -> None:
    async def work() -> None:
        clock = Clock()
        teams = Teams(FairQueue(16, 1000, 10**6, clock=clock))
        await teams.ask(ANYONE, 60, batch=True)
        assert len(teams.order) == 14
        await teams.ask("people", 1)
        assert teams.order[14:] == ["people"]
        await teams.release(15)
        assert len(teams.order) == 15 + 8, "while people ask, batches take half"
        clock.now += 61
        await teams.release()
        assert len(teams.order) == 15 + 15, "nobody has asked for a minute"

    run(work)


@pytest.mark.parametrize("scale", [False, True])
def test_replicas_are_added_for_batches_only_if_the_settings_say_so(scale: bool) -> None:
    async def work() -> None:
        teams = Teams(FairQueue(1, 1000, 10**6, batches_scale=scale))
        await teams.ask("people", 2)
        await teams.ask("warm", 3, batch=True)
        assert teams.queue.queued_tokens == 400
        assert teams.queue.scaling_tokens == (400 if scale else 100)
        assert teams.queue.scales(batch=False) and teams.queue.scales(batch=True) == scale

    run(work)


def test_a_slot_is_reserved_for_teams_with_nothing_running() -> None:
    async def work() -> None:
        teams = Teams(FairQueue(16, 1000, 10**6))
        await teams.ask("flood", 50)
        assert len(teams.order) == 14
        await teams.ask("quiet", 1)
        assert teams.order[14:] == ["quiet"]
        without_teams = Teams(FairQueue(16, 1000, 10**6))
        await without_teams.ask(ANYONE, 50)
        assert len(without_teams.order) == 16, "without teams no slot is reserved"

    run(work)


def test_beyond_the_limit_the_largest_team_loses_its_last_request() -> None:
    async def work() -> None:
        teams = Teams(FairQueue(1, 10, 10**6))
        await teams.ask("flood", 11)
        await teams.ask("flood", 1)
        with pytest.raises(ApiError, match="waiting") as refused:
            await teams.tasks[-1]
        assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) >= 1
        await teams.ask("quiet", 1)
        with pytest.raises(ApiError):
            await teams.tasks[10]
        await teams.release()
        assert teams.order == ["flood", "quiet"]

    run(work)


def test_a_cancelled_request_frees_its_slot_and_costs_nothing() -> None:
    async def work() -> None:
        queue = FairQueue(1, 10, 10**6)
        teams = Teams(queue)
        await teams.ask("one", 3)
        teams.tasks[1].cancel()
        await asyncio.wait(teams.tasks[1:2])
        assert (queue.running, queue.queued) == (1, 1)
        # Granted and cancelled at the same moment: the slot must not be lost.
        slot, _ = teams.slots.pop()
        slot.release(100)
        teams.tasks[2].cancel()
        await asyncio.wait(teams.tasks[2:])
        assert (queue.running, queue.queued) == (0, 0)
        await teams.ask("two", 1)
        assert teams.order[-1] == "two"

    run(work)


def test_engines_get_no_more_prompts_than_a_step_takes() -> None:
    async def work() -> None:
        queue = FairQueue(32, 1000, 100)
        teams = Teams(queue)
        await teams.ask("flood", 20, prompt=40)
        assert len(teams.order) == 2
        await teams.ask("quiet", 1, prompt=40)
        teams.slots[0][0].prefill_done()
        await settle()
        assert teams.order == ["flood", "flood", "quiet"]
        await teams.end_prefills()
        assert len(teams.order) == 5
        await teams.ask("long", 1, prompt=5000, cost=6000)
        while "long" not in teams.order:
            await teams.end_prefills()
        assert queue.running == len(teams.order), "a prompt beyond the limit is computed alone"

    run(work)


def test_a_cancellation_at_the_moment_of_the_last_release_or_of_a_refusal_breaks_nothing() -> None:
    async def work() -> None:
        queue = FairQueue(2, 2, 10**6)
        teams = Teams(queue)
        await teams.ask("a", 2)
        await teams.ask("b", 1)
        # The task is cancelled but has not run when the last slots are released: its team must still exist.
        teams.tasks[2].cancel()
        for slot, _ in teams.slots:
            slot.release(1)
        assert isinstance((await asyncio.gather(*teams.tasks, return_exceptions=True))[2], asyncio.CancelledError)
        assert (queue.running, queue.queued) == (0, 0)

        again = Teams(queue)
        await again.ask("a", 4)
        late = asyncio.create_task(queue.acquire("b", 1.0, TokenCost(1, 1)))
        await asyncio.sleep(0)  # it makes room: the last of the larger team is refused, and its task has not run since
        again.tasks[3].cancel()
        await asyncio.wait([again.tasks[3]])
        assert (queue.running, queue.queued) == (2, 2)
        for _ in range(2):
            await again.release()
        await again.release()
        (await late).release(1)
        await settle()
        assert (queue.running, queue.queued) == (0, 0)

    run(work)


def test_a_team_with_thousands_waiting_does_not_slow_the_choice_of_the_next() -> None:
    def looked_at(waiting: int) -> int:
        looks = 0

        class Watched(FairQueue):
            def _may_start(self, team: str, cost: TokenCost) -> bool:
                nonlocal looks
                looks += 1
                return super()._may_start(team, cost)

        async def work() -> None:
            nonlocal looks
            teams = Teams(Watched(16, 100_000, 10**6))
            await teams.ask("quiet", 1)
            await teams.ask("flood", waiting)
            looks = 0
            await teams.release(10)
            for task in teams.tasks:
                task.cancel()
            await asyncio.gather(*teams.tasks, return_exceptions=True)

        run(work)
        return looks

    assert looked_at(2000) == looked_at(100)


def test_requests_that_leave_do_not_stay_in_memory() -> None:
    async def work() -> None:
        queue = FairQueue(1, 1000, 10**6)
        teams = Teams(queue)
        await teams.ask("occupant", 1)
        await teams.ask("patient", 1)
        for _ in range(20):
            await teams.ask("patient", 100)
            leaving = teams.tasks[2:]
            del teams.tasks[2:]
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        assert queue.queued == 1 and queue.queued_tokens == 100
        assert queue._waiting.entries < 200
        for task in teams.tasks:
            task.cancel()
        await asyncio.gather(*teams.tasks, return_exceptions=True)

    run(work)


def test_the_last_of_the_largest_team_may_just_have_been_cancelled() -> None:
    async def work() -> None:
        queue = FairQueue(1, 2, 10**6)
        teams = Teams(queue)
        await teams.ask("flood", 3)
        for task in teams.tasks[1:]:
            task.cancel()  # neither task has run since
        late = asyncio.create_task(queue.acquire("quiet", 1.0, TokenCost(1, 1)))
        await settle()
        await teams.release()
        (await late).release(2)
        assert (queue.running, queue.queued) == (0, 0)

    run(work)
