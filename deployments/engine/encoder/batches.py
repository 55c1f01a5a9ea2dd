"""Splits requests to an encoder into batches of texts of similar lengths, and knows its load."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from deployments.common.messages import EncoderInput
from deployments.engine.encoder.model import EncoderModel

BATCH_SIZE = 16
_BATCH_TOKENS = 8192
"""With padding. It bounds the memory for a batch of long texts."""
_PACE_WEIGHT = 0.2


class EncoderBatches:
    """Runs one batch at a time, so that a small request waits for one batch of a large one, not for all of it.

    waiting_tokens: of texts that are not computed yet. pace: tokens that the model computes per second, smoothed.
    """

    def __init__(self, model: EncoderModel) -> None:
        self.waiting_tokens = 0
        self.pace = 0.0
        self._model = model
        self._lock = asyncio.Lock()

    async def run(self, inputs: Sequence[EncoderInput]) -> list[bytes]:
        """What the model computes for each input, in their order, as little-endian float32."""
        results = [b""] * len(inputs)
        unfinished = sum(len(text.ids) for text in inputs)
        self.waiting_tokens += unfinished
        try:
            for indices in batches([len(text.ids) for text in inputs]):
                batch = [inputs[index] for index in indices]
                tokens = sum(len(text.ids) for text in batch)
                async with self._lock:
                    started = time.perf_counter()
                    rows = await asyncio.to_thread(self._model.run, batch)
                    self._measure(tokens / (time.perf_counter() - started))
                self.waiting_tokens -= tokens
                unfinished -= tokens
                for index, row in zip(indices, rows, strict=True):
                    results[index] = row.astype("<f4").tobytes()
        finally:
            self.waiting_tokens -= unfinished
        return results

    def _measure(self, tokens_per_s: float) -> None:
        self.pace += (tokens_per_s - self.pace) * (_PACE_WEIGHT if self.pace else 1.0)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of texts of these lengths, in batches of similar lengths, so that little is computed for padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # The next one is the longest, to which the others are padded.
        if batch and (len(batch) == BATCH_SIZE or (len(batch) + 1) * lengths[index] > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
