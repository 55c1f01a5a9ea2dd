"""What the engine process asks of an engine, so that another one can take its place."""

from collections.abc import Callable
from typing import Protocol

from deployments.common.messages import Add, Cancel, EngineLoad, StepResult, TokenBatch


def nobody() -> bool:
    """For a step that nothing ends early."""
    return False


class SteppedEngine(Protocol):
    """Generates the tokens of many streams, one step at a time. It is used from one thread."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do, so that `step` should be called."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit into the KV cache."""

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is."""

    @property
    def next_tokens(self) -> int:
        """Tokens that the next step computes at most."""

    def add(self, message: Add) -> None:
        """Begins a stream. One that the engine refuses ends with the next step."""

    def cancel(self, message: Cancel) -> None:
        """Ends a stream that nobody reads. Does nothing if it has ended."""

    def step(self, people_wait: Callable[[], bool] = nobody) -> StepResult:
        """Runs one forward pass, and returns what each stream got from it.

        people_wait: asked while a pass runs that is for batch work alone; true ends that pass, and no stream gets
        anything from it.
        """

    def result(self, batches: dict[int, TokenBatch]) -> StepResult:
        """These batches, and what the replica should know of the next step."""

    def warm_up(self) -> str:
        """Runs first inferences, and measures this machine's prefill speed. Returns how it multiplies, for the log."""
