"""POST /v1/embeddings."""

import base64
from array import array
from typing import Annotated, Literal

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.common import Count, check_count
from deployments.api.protocol.parsing import parse
from deployments.common.errors import invalid_request
from deployments.routing.embeddings import InputType

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_INPUT_TYPES: dict[str, InputType] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
}


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/embeddings.

    input: one text or several, as text or as the model's own token ids, which are embedded as they are. dimensions:
    vectors are cut to it, and brought to length 1 again. input_type: adds the prompt that the model's makers put before
    such texts; passage and query as NVIDIA calls them, document as Voyage, search_query and search_document as Cohere.
    """

    model: str
    input: str | Annotated[list[str | TokenId | list[TokenId]], msgspec.Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    input_type: Literal["query", "passage", "document", "search_query", "search_document"] | None = None
    user: str | None = None

    @property
    def prompt(self) -> InputType | None:
        """The kind of prompt that is added to texts."""
        return _INPUT_TYPES[self.input_type] if self.input_type else None


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


class EmbeddingInputs(msgspec.Struct, frozen=True):
    """What to embed: either texts, or token ids."""

    texts: list[str]
    ids: list[list[int]]


decode = msgspec.json.Decoder(EmbeddingRequest)


def read_embedding(body: bytes, limits: LimitSettings) -> tuple[EmbeddingRequest, EmbeddingInputs]:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    inputs = _inputs_of(request)
    check_count(len(inputs.texts) + len(inputs.ids), limits.embedding_inputs, "input")
    if not all(text.strip() for text in inputs.texts) or not all(inputs.ids):
        raise invalid_request("input", "input has an empty text; leave it out.", code="empty_input")
    if inputs.ids and request.input_type:
        raise invalid_request("input_type", "input_type adds a prompt to texts; token ids are embedded as they are.")
    return request, inputs


def _inputs_of(request: EmbeddingRequest) -> EmbeddingInputs:
    """The texts, or the token ids, of which a plain list is one text."""
    if isinstance(request.input, str):
        return EmbeddingInputs([request.input], [])
    texts = [text for text in request.input if isinstance(text, str)]
    numbers = [number for number in request.input if isinstance(number, int)]
    ids = [[*each] for each in request.input if isinstance(each, list)]
    if len(request.input) not in (len(texts), len(numbers), len(ids)):
        raise invalid_request("input", "input mixes texts and token ids; send one kind.", code="invalid_type")
    return EmbeddingInputs(texts, [numbers] if numbers else ids)


def embeddings_response(request: EmbeddingRequest, vectors: list[bytes], tokens: int) -> Embeddings:
    """The body of the response.

    vectors: one a text, little-endian float32. tokens: of all texts. Raises ApiError 400 for more `dimensions` than the
    model has.
    """
    size = len(vectors[0]) // 4
    if request.dimensions is not None and request.dimensions > size:
        message = f"This model's vectors have {size} dimensions; set dimensions to at most {size}, or leave it out."
        raise invalid_request("dimensions", message)
    if request.dimensions is not None and request.dimensions < size:
        vectors = _shortened(vectors, request.dimensions)
    data = [
        Embedding(
            index,
            base64.b64encode(vector).decode() if request.encoding_format == "base64" else array("f", vector).tolist(),
        )
        for index, vector in enumerate(vectors)
    ]
    return Embeddings(data, request.model, EmbeddingUsage(tokens, tokens))


def _shortened(vectors: list[bytes], dimensions: int) -> list[bytes]:
    """The vectors' first numbers, at length 1."""
    import numpy  # only where vectors are computed with

    rows = numpy.frombuffer(b"".join(vectors), numpy.float32).reshape(len(vectors), -1)[:, :dimensions]
    lengths = numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return [row.tobytes() for row in (rows / lengths).astype(numpy.float32)]
