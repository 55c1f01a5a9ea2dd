"""POST /v1/embeddings."""

import base64
from array import array
from typing import Annotated, Literal

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.parsing import parse
from deployments.common.errors import invalid_request


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/embeddings. Texts only: token ids would be another tokenizer's."""

    model: str
    input: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


class Embedding(msgspec.Struct, frozen=True):
    """One vector: numbers, or their little-endian float32 in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True):
    """The answer: a vector for each text, in their order."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


decode = msgspec.json.Decoder(EmbeddingRequest)


def read_embedding(body: bytes, limits: LimitSettings) -> EmbeddingRequest:
    """The request in a body, within the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    texts = texts_of(request)
    if len(texts) > limits.embedding_inputs:
        message = f"{len(texts)} texts; at most {limits.embedding_inputs} are taken."
        raise invalid_request("input", message, code="array_above_max_length")
    if not all(text.strip() for text in texts):
        raise invalid_request("input", "A text is empty.", code="empty_input")
    return request


def texts_of(request: EmbeddingRequest) -> list[str]:
    """Its texts."""
    return [request.input] if isinstance(request.input, str) else request.input


def embeddings_response(request: EmbeddingRequest, vectors: list[bytes], tokens: int) -> Embeddings:
    """The answer. vectors: little-endian float32. Raises ApiError 400 for dimensions that the model has not."""
    size = len(vectors[0]) // 4
    if request.dimensions not in (None, size):
        raise invalid_request("dimensions", f"This model's vectors have {size} dimensions, and no others.")
    data = [
        Embedding(
            place,
            base64.b64encode(vector).decode() if request.encoding_format == "base64" else array("f", vector).tolist(),
        )
        for place, vector in enumerate(vectors)
    ]
    return Embeddings(data, request.model, EmbeddingUsage(tokens, tokens))
