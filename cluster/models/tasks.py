"""What a model was trained for: to generate text, to embed texts, or to score pairs of them."""

from collections.abc import Sequence
from typing import Literal, Protocol

Task = Literal["generate", "embed", "rerank"]


class WrongTask(ValueError):
    """The model was trained for another task than the settings say."""


class Axis(Protocol):
    """OpenVINO's size of a tensor in one direction."""

    @property
    def is_dynamic(self) -> bool: ...

    def get_length(self) -> int: ...


def check_output(name: str, task: Task, shape: Sequence[Axis]) -> None:
    """Raises WrongTask where a model computes something else. shape: OpenVINO's, of the model's first output."""
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
