"""What a model was trained for: to generate text, to embed texts, or to score pairs of them."""

from pathlib import Path
from typing import Any, Literal, Protocol

Task = Literal["generate", "embed", "rerank"]
POOLING_FILE = "1_Pooling/config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
TESTED_FILE = "sentence_bert_config.json"
SENTENCE_FILES = ("modules.json", PROMPTS_FILE, TESTED_FILE)
"""What sentence-transformers writes beside an embedding model: its pooling, prompts and maximum length."""
POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
"""These count positions from the padding's id on, so the first two of a table of 514 hold no token."""
_GENERATE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ChatGLMModel")


class WrongTask(ValueError):
    """The model was trained for another task than the settings say."""


def trained_task(folder: Path, config: dict[str, Any]) -> Task | None:
    """What the model in a folder was trained for; None where its files do not say. config: its config.json."""
    architectures = [name for name in config.get("architectures") or () if isinstance(name, str)]
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "rerank"
    # First, because an embedding model may be a language model whose last layer nobody uses, as Qwen3-Embedding is.
    if any((folder / name).is_file() for name in (POOLING_FILE, *SENTENCE_FILES)):
        return "embed"
    if any(name.endswith(_GENERATE) for name in architectures):
        return "generate"
    return "embed" if any(name.endswith(("Model", "ForMaskedLM")) for name in architectures) else None


def trained_length(config: dict[str, Any], tested: dict[str, Any]) -> int:
    """Maximum tokens of a text: what an embedding model's makers tested, where they say so, else its positions.

    config: its config.json. tested: its TESTED_FILE, or nothing.
    """
    limit = int(config["max_position_embeddings"])
    if config.get("model_type") in _POSITIONS_AFTER_PADDING:
        limit -= int(config.get("pad_token_id", 1)) + 1
    tokens = tested.get("max_seq_length")
    return min(int(tokens), limit) if tokens else limit


class Rank(Protocol):
    """How many axes a tensor has."""

    @property
    def is_dynamic(self) -> bool: ...


class Axis(Protocol):
    """The size of a tensor in one direction."""

    @property
    def is_dynamic(self) -> bool: ...

    def get_length(self) -> int: ...


class Shape(Protocol):
    """OpenVINO's shape of a tensor."""

    @property
    def rank(self) -> Rank: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Axis: ...


def check_output(name: str, task: Task, shape: Shape) -> None:
    """Raises WrongTask where a model computes something else. shape: of its first output."""
    if shape.rank.is_dynamic:
        return  # only an inference would tell
    axes = len(shape)
    if task == "rerank":
        fits = axes == 2 and (shape[1].is_dynamic or shape[1].get_length() == 1)
        wanted = "one score for each text (a cross-encoder)"
    elif task == "embed":
        fits, wanted = axes == 3, "a vector for each token (an embedding model)"
    else:
        fits, wanted = axes == 3, "logits for each token (a language model)"
    if not fits:
        raise WrongTask(
            f"{name} is no model for task: {task}, which needs {wanted}; its output has the shape {shape}. Set the "
            "model's task to what it was trained for"
        )
