"""How many prompt tokens a step may compute beside running streams, from the times of earlier steps."""

_WEIGHT = 0.2
"""Of a new step in an average."""
_MAX_SAMPLE = 4.0
"""A step that took longer than this many times the average counts as this many: something else had the cores."""
_STEPS_PER_DOUBLING = 4


class StepPace:
    """Average times: of steps that only decode, and of what prompt tokens add to a step."""

    def __init__(self, slowdown: float, max_tokens: int, min_tokens: int) -> None:
        """slowdown: how many times as long as a decoding step one with prompt tokens beside it may take.
        max_tokens, min_tokens: of prompts, in one step."""
        self._slowdown = slowdown
        self._max_tokens = max_tokens
        self._min_tokens = min(min_tokens, max_tokens)
        self._decode: dict[int, float] = {}
        """Seconds of a step, by the number of tokens that it decodes (as a power of two)."""
        self._prompt: dict[int, float] = {}
        """Seconds that each prompt token adds, by the number of prompt tokens (as a power of two)."""
        self._sizes = [self._min_tokens]
        while self._sizes[-1] < max_tokens:
            step = max(1, (1 << self._sizes[-1].bit_length() - 1) // _STEPS_PER_DOUBLING)
            self._sizes.append(min(max_tokens, self._sizes[-1] + step))

    def prompt_tokens(self, decoding: int) -> int:
        """How many prompt tokens the next step may compute beside this many decoding sequences."""
        if not decoding:
            return self._max_tokens
        plain = _nearest(self._decode, decoding)
        allowed = (self._slowdown - 1) * plain
        return max(
            (size for size in self._sizes if plain and size * _nearest(self._prompt, size) <= allowed),
            default=self._min_tokens,
        )

    def decode_s(self, tokens: int) -> float:
        """Seconds of a step that decodes this many tokens, guesses included; 0 if nothing is known."""
        return _nearest(self._decode, tokens)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Records a step. decoding: tokens, guesses included. prompt_tokens: that it computed beside them."""
        if not prompt_tokens:
            _average(self._decode, decoding, seconds)
        elif prompt_tokens >= self._min_tokens:
            plain = _nearest(self._decode, decoding) if decoding else 0.0
            _average(self._prompt, prompt_tokens, max(seconds - plain, 0.0) / prompt_tokens)


def _average(table: dict[int, float], number: int, sample: float) -> None:
    size = number.bit_length()
    average = table.get(size, sample)
    table[size] = average + (min(sample, _MAX_SAMPLE * average) - average) * _WEIGHT


def _nearest(table: dict[int, float], number: int) -> float:
    """The average of this size, else of the nearest one; 0 if there is none."""
    return table[min(table, key=lambda size: abs(size - number.bit_length()))] if table else 0.0
