"""Time that passes when a test says so."""


class Clock:
    """A clock for tests: calling it returns `now`, which tests set, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
