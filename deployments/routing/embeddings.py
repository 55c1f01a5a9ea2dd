"""An embedding model as a router serves it."""

import asyncio
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from tokenizers import Tokenizer

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError, overloaded
from deployments.common.messages import decode_vectors, encode

_ATTEMPTS = 3


class EmbeddingEndpoint:
    """Makes vectors by whichever replica is free."""

    def __init__(self, model: ServedModel, replicas: Any) -> None:
        """replicas: their Serve handle."""
        self.model = model
        self._most = model.context_tokens
        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._replicas = replicas

    def count(self, texts: list[str]) -> int:
        """Tokens of the texts. Raises ApiError 400 for one that is longer than the model takes."""
        total = 0
        for place, one in enumerate(self._tokenizer.encode_batch(texts)):
            if len(one.ids) > self._most:
                raise ApiError(
                    400,
                    f"Text {place} has {len(one.ids)} tokens; this model takes {self._most}.",
                    code="context_length_exceeded",
                    param="input",
                )
            total += len(one.ids)
        return total

    async def embed(self, texts: list[str], timeout_s: float) -> list[bytes]:
        """Their vectors as little-endian float32. Raises ApiError: 503 when all replicas are full, 408, 500."""
        for _ in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(timeout_s):
                    return decode_vectors(await self._replicas.embed.remote(encode(texts)))
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise overloaded("All replicas are busy. Try again shortly.") from error
            except RayActorError:
                continue  # it has no state: another makes the same
            except TimeoutError:
                raise ApiError(408, "Not finished in time. Send fewer texts.", code="request_timeout") from None
        raise ApiError(500, "The replicas failed on this request.", code="engine_failed", kind="server_error")
