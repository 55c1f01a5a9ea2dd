"""The requests of one router that wait for the same generation, and the one whose team pays for it."""

import asyncio
from dataclasses import dataclass

from deployments.common.errors import ApiError
from deployments.generation.broadcast import Subscriber
from deployments.generation.context import RequestContext


@dataclass(frozen=True, slots=True)
class Requester:
    """A request, and how it receives the generation."""

    context: RequestContext
    subscriber: Subscriber


class Requesters:
    """Requests in the order in which they came. The first one pays; if its quota refuses, the next one does."""

    def __init__(self) -> None:
        self.payer: RequestContext | None = None
        """The request whose quota is charged; None before."""
        self.refused = False
        """Whether no team's quota allows the generation."""
        self._all: list[Requester] = []
        self._charging = asyncio.Lock()

    def add(self, context: RequestContext, subscriber: Subscriber) -> None:
        self._all.append(Requester(context, subscriber))

    def others(self) -> list[RequestContext]:
        """The requests that do not pay."""
        return [requester.context for requester in self._all if requester.context is not self.payer]

    async def charge(self, prompt: int, completion: int = 0) -> None:
        """Reserves the tokens from a team's quota, unless that was done before. Raises ApiError 429 if no team has them
        left; then each subscriber gets its own team's refusal."""
        async with self._charging:
            refusals: dict[str, ApiError] = {}
            for requester in self._all:  # more may come meanwhile
                if self.payer is not None:
                    return
                if requester.context.caller.name not in refusals:
                    try:
                        await requester.context.grant.reserve(prompt, completion)
                        self.payer = requester.context
                    except ApiError as error:
                        refusals[requester.context.caller.name] = error
            if self.payer is None:
                self.refused = True
                for requester in self._all:
                    requester.subscriber.refusal = refusals[requester.context.caller.name]
                raise next(iter(refusals.values()))

    async def refund(self) -> None:
        """Gives back what was reserved; `charge` may be called again."""
        payer, self.payer = self.payer, None
        if payer is not None:
            await payer.grant.settle(0)

    async def settle(self, prompt: int, completion: int) -> None:
        """Charges what was generated in place of what was reserved."""
        if self.payer is not None:
            await self.payer.grant.settle(prompt, completion)
