"""An embedding model or a reranker as a router reaches it: texts to token ids, and any free replica."""

import asyncio
from collections.abc import Sequence

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cluster.models.folder import ServedModel
from cluster.models.tokenizer_files import load_tokenizer
from deployments.common.errors import ApiError, invalid_request, overloaded
from deployments.common.messages import EncoderInput, decode_vectors, encode
from deployments.common.text_encoder import TextEncoder
from deployments.routing.handles import EncoderHandle

_ATTEMPTS = 3


class Encoder:
    """A model's tokenizer and its replicas."""

    def __init__(self, model: ServedModel, replicas: EncoderHandle) -> None:
        """replicas: the Serve handle on the model's replicas."""
        self.model = model
        # It neither cuts nor pads: a text that is too long is refused, and replicas pad.
        tokenizer = load_tokenizer(model.folder)
        # What a client says is text: a [SEP] in it must not end a query where a cross-encoder's document begins.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self._words = tokenizer.get_vocab_size(with_added_tokens=True)
        self._texts = TextEncoder(tokenizer, model.context_tokens)
        self._replicas = replicas

    def check_characters(self, texts: Sequence[str], param: str) -> None:
        """Raises ApiError 400 for a text that cannot fit the model's context, before it is tokenized."""
        self._texts.check_characters(max(map(len, texts)), param)

    def tokenize(self, texts: Sequence[str], param: str) -> list[EncoderInput]:
        """The texts' tokens. Raises ApiError 400 for one that is longer than the model's context."""
        self.check_characters(texts, param)
        inputs = [EncoderInput(ids) for ids in self._texts.encode(texts, special=True)]
        self._check_lengths(inputs, param)
        return inputs

    def tokenize_cut(self, text: str) -> EncoderInput:
        """A text's tokens, cut to the model's context."""
        [ids] = self._texts.encode([text], special=True)
        # The last one is the special token that ends a text, if the model has any.
        limit = self.model.context_tokens
        return EncoderInput(ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]])

    def tokenize_pairs(self, pairs: Sequence[tuple[str, str]], params: tuple[str, str]) -> list[EncoderInput]:
        """The pairs' tokens, as a cross-encoder reads them. Raises ApiError 400 for one beyond the model's context.

        params: names of the fields that the first and the second texts come from.
        """
        for texts, param in zip(zip(*pairs, strict=True), params, strict=True):
            self.check_characters(texts, param)
        inputs = []
        for encoding in self.tokenizer.encode_batch_fast(list(pairs)):
            types = encoding.type_ids
            inputs.append(EncoderInput(encoding.ids, types.index(1) if 1 in types else 0))
        self._check_lengths(inputs, params[1])
        return inputs

    def own_ids(self, text: str) -> list[int]:
        """The tokens of a text of the model's makers, whose control tokens are control tokens."""
        self.tokenizer.encode_special_tokens = False
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self.tokenizer.encode_special_tokens = True

    def tokenize_between(
        self, before: list[int], texts: Sequence[str], after: list[int], param: str
    ) -> list[EncoderInput]:
        """The texts' tokens between the same others. Raises ApiError 400 for one beyond the model's context."""
        inputs = [EncoderInput([*before, *ids, *after]) for ids in self._texts.encode(texts)]
        self._check_lengths(inputs, param)
        return inputs

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """The texts, each cut to its first tokens."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            text[: encoding.offsets[max_tokens - 1][1]] if len(encoding.ids) > max_tokens else text
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def check_ids(self, texts: Sequence[list[int]], param: str) -> list[EncoderInput]:
        """Token ids that a client has sent. Raises ApiError 400 for ids that the model does not have, or too many."""
        for index, ids in enumerate(texts):
            if (largest := max(ids)) >= self._words:
                raise invalid_request(
                    param,
                    f"Text {index} has the token id {largest}; this model's ids end at {self._words - 1}. They must be "
                    "of this model's tokenizer: send text instead (LangChain: check_embedding_ctx_length=False).",
                )
        inputs = [EncoderInput(ids) for ids in texts]
        self._check_lengths(inputs, param)
        return inputs

    async def run(self, inputs: Sequence[EncoderInput], timeout_s: float) -> list[bytes]:
        """The result for each input, as little-endian float32. Raises ApiError: 503 when all replicas are full, 408,
        500."""
        payload = encode(inputs)
        for _ in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(timeout_s):
                    return decode_vectors(await self._replicas.run.remote(payload))
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise overloaded("All replicas are busy. Try again shortly.") from error
            except RayActorError:
                continue  # Replicas keep no state: another one returns the same.
            except TimeoutError:
                raise ApiError(408, "Not finished in time. Send fewer texts.", code="request_timeout") from None
        raise ApiError(500, "The replicas failed on this request.", code="engine_failed", kind="server_error")

    def _check_lengths(self, inputs: Sequence[EncoderInput], param: str) -> None:
        limit = self.model.context_tokens
        for index, text in enumerate(inputs):
            if len(text.ids) > limit:
                raise ApiError(
                    400,
                    f"Text {index} has {len(text.ids)} tokens; this model takes at most {limit}. Shorten or split it.",
                    code="context_length_exceeded",
                    param=param,
                )
