"""POST /v1/embeddings."""

import base64
from array import array
from typing import Annotated, Literal

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.common import Count, check_count
from deployments.api.protocol.parsing import parse
from deployments.common.errors import invalid_request


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/embeddings. input: one text or several; token ids are not supported."""

    model: str
    input: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one text: numbers, or their little-endian float32 in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True):
    """The body of a response: a vector for each text, in their order."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


decode = msgspec.json.Decoder(EmbeddingRequest)


def read_embedding(body: bytes, limits: LimitSettings) -> EmbeddingRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    texts = texts_of(request)
    check_count(len(texts), limits.embedding_inputs, "input")
    if not all(text.strip() for text in texts):
        raise invalid_request("input", "input has an empty text; leave it out.", code="empty_input")
    return request


def texts_of(request: EmbeddingRequest) -> list[str]:
    """The texts to embed."""
    return [request.input] if isinstance(request.input, str) else request.input


def embeddings_response(request: EmbeddingRequest, vectors: list[bytes], tokens: int) -> Embeddings:
    """The body of the response.

    vectors: one a text, little-endian float32. tokens: of all texts. Raises ApiError 400 for `dimensions` that the
    model does not have.
    """
    size = len(vectors[0]) // 4
    if request.dimensions not in (None, size):
        message = f"This model's vectors have {size} dimensions; set dimensions to {size} or leave it out."
        raise invalid_request("dimensions", message)
    data = [
        Embedding(
            index,
            base64.b64encode(vector).decode() if request.encoding_format == "base64" else array("f", vector).tolist(),
        )
        for index, vector in enumerate(vectors)
    ]
    return Embeddings(data, request.model, EmbeddingUsage(tokens, tokens))
