"""Grammars that are being compiled, on a thread beside the engine's steps: one may take a second."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from deployments.common.messages import EngineRequest
from deployments.engine.fair_thread import FairThread
from deployments.engine.grammar import GrammarCompiler, GrammarError, Matcher

_WAIT_S = 0.01


class Compilations:
    """Compiles the grammars of streams, one by one. Namespaces share the thread fairly."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._thread = FairThread("compile")
        self._running: dict[int, Future[Matcher]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, number: int, request: EngineRequest) -> None:
        """Compiles the grammar of this stream's request."""
        self._running[number] = self._thread.submit(request.namespace, partial(self._compile, request))

    def cancel(self, number: int) -> bool:
        """Forgets a stream, and does not begin with its grammar. False: it is not being compiled."""
        if number not in self._running:
            return False
        self._running.pop(number).cancel()
        return True

    def done(self, *, idle: bool) -> Iterator[tuple[int, Matcher | GrammarError]]:
        """The streams whose grammars are compiled, or could not be.

        idle: there is nothing else to do. Then it waits a moment; not longer, as messages may arrive.
        """
        if idle and self._running:
            wait(self._running.values(), _WAIT_S, FIRST_COMPLETED)
        for number in [number for number, compiling in self._running.items() if compiling.done()]:
            try:
                yield number, self._running.pop(number).result()
            except GrammarError as error:
                yield number, error

    def _compile(self, request: EngineRequest) -> Matcher:
        """The state of the request's completion so far in its grammar."""
        assert request.sampling.grammar is not None
        matcher = self._compiler.compile(request.sampling.grammar)
        if request.generated_tokens:
            matcher.consume(request.prompt_ids[-request.generated_tokens :])
        return matcher
