"""An embedding model as a router serves it."""

from collections.abc import Sequence

from cluster.models.folder import ServedModel
from deployments.common.messages import EncoderInput
from deployments.routing.encoders import Encoder


class EmbeddingEndpoint:
    """Embeds texts on whichever replica is free."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @property
    def model(self) -> ServedModel:
        """The model that computes the vectors."""
        return self.encoder.model

    async def vectors(self, inputs: Sequence[EncoderInput], timeout_s: float) -> list[bytes]:
        """Vectors of length 1 as little-endian float32. Raises ApiError: 503 when all replicas are full, 408, 500."""
        return await self.encoder.run(inputs, timeout_s)

    async def embed(self, text: str, timeout_s: float) -> bytes:
        """The vector of a text, of which only the beginning counts if it is longer than the model's context."""
        [vector] = await self.encoder.run([self.encoder.tokenize_cut(text)], timeout_s)
        return vector
