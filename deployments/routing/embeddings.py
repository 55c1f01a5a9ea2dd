"""An embedding model as a router serves it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster.models.folder import ServedModel
from cluster.models.identity import read_json
from cluster.models.tasks import PROMPTS_FILE
from deployments.common.messages import EncoderInput
from deployments.routing.encoders import Encoder

InputType = Literal["query", "passage"]
"""Whether a text searches, or is to be found."""


class EmbeddingEndpoint:
    """Embeds texts on whichever replica is free."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._prompts = trained_prompts(encoder.model.folder)

    def with_prompt(self, texts: Sequence[str], input_type: InputType | None) -> list[str]:
        """The texts after what the model's makers put before such texts; as they are without a type."""
        prompt = self._prompts.get(input_type, "") if input_type else ""
        return [prompt + text for text in texts]

    @property
    def model(self) -> ServedModel:
        """The model that computes the vectors."""
        return self.encoder.model

    async def vectors(self, inputs: Sequence[EncoderInput], timeout_s: float) -> list[bytes]:
        """Vectors of length 1 as little-endian float32. Raises ApiError: 503 when all replicas are full, 408, 500."""
        return await self.encoder.run(inputs, timeout_s)

    async def embed(self, text: str, timeout_s: float) -> bytes:
        """The vector of a text, of which only the beginning counts if it is longer than the model's context."""
        # A model that marks both sides of a search compares two questions as queries (so do the makers of E5).
        [text] = self.with_prompt([text], "query" if self._prompts.get("passage") else None)
        [vector] = await self.encoder.run([self.encoder.tokenize_cut(text)], timeout_s)
        return vector


def trained_prompts(folder: Path) -> dict[InputType, str]:
    """What stands before queries and passages, from the sentence-transformers config; sentence-transformers calls
    passages documents too."""
    file = folder / PROMPTS_FILE
    prompts = read_json(file).get("prompts") if file.is_file() else None
    if not isinstance(prompts, dict):
        return {}
    passage = prompts.get("passage") or prompts.get("document")
    found: dict[InputType, object] = {"query": prompts.get("query"), "passage": passage}
    return {name: text for name, text in found.items() if isinstance(text, str)}
