"""An embedding model as a router serves it."""

import asyncio

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from tokenizers import Tokenizer

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError, overloaded
from deployments.common.messages import decode_vectors, encode
from deployments.common.text_encoder import TextEncoder
from deployments.routing.handles import EmbedderHandle

_ATTEMPTS = 3


class EmbeddingEndpoint:
    """Embeds texts on whichever replica is free."""

    def __init__(self, model: ServedModel, replicas: EmbedderHandle) -> None:
        """replicas: the Serve handle on the model's replicas."""
        self.model = model
        self._encoder = TextEncoder(Tokenizer.from_file(str(model.folder / "tokenizer.json")), model.context_tokens)
        self._replicas = replicas

    def count(self, texts: list[str]) -> int:
        """Tokens of all texts together. Raises ApiError 400 for a text that is longer than the model's context."""
        limit, total = self.model.context_tokens, 0
        self._encoder.check_characters(max(map(len, texts)), "input")
        for index, tokens in enumerate(map(len, self._encoder.encode(texts, special=True))):
            if tokens > limit:
                raise ApiError(
                    400,
                    f"Text {index} has {tokens} tokens; this model takes at most {limit}. Shorten or split it.",
                    code="context_length_exceeded",
                    param="input",
                )
            total += tokens
        return total

    async def embed(self, texts: list[str], timeout_s: float) -> list[bytes]:
        """The texts' vectors as little-endian float32. Raises ApiError: 503 when all replicas are full, 408, 500."""
        for _ in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(timeout_s):
                    return decode_vectors(await self._replicas.embed.remote(encode(texts)))
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise overloaded("All replicas are busy. Try again shortly.") from error
            except RayActorError:
                continue  # Embedding keeps no state: another replica returns the same vectors.
            except TimeoutError:
                raise ApiError(408, "Not finished in time. Send fewer texts.", code="request_timeout") from None
        raise ApiError(500, "The replicas failed on this request.", code="engine_failed", kind="server_error")
