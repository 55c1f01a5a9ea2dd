"""Models with a short name: their repositories, licences, and how their authors recommend to use them."""

from dataclasses import dataclass, field
from typing import Literal

Hub = Literal["huggingface", "modelscope"]
WEIGHT_BITS = {"int4": 4.5, "int8": 8.0, "fp16": 16.0, "fp32": 32.0}
"""Bits per parameter on disk. INT4 includes the groups' scales and the layers that stay at INT8."""


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model of the catalog.

    repositories: the original weights on each hub; the names of ready-made OpenVINO models follow from them.
    parameters: a count. context_tokens: maximum of prompt and completion together. thinking: how it marks its
    thinking, or "none". tools: the format of its tool calls, or "none". sampling: what its authors recommend. advice:
    one more recommendation, or empty. remote_code: whether the export needs Python code from the repository.
    """

    name: str
    repositories: dict[Hub, str]
    licence: str
    parameters: float
    context_tokens: int
    architecture: str
    thinking: str = "none"
    tools: str = "none"
    sampling: dict[str, float] = field(default_factory=dict)
    advice: str = ""
    remote_code: bool = False

    def ready_made(self, hub: Hub, weight: str) -> str:
        """The repository of the OpenVINO model with compressed weights that Intel publishes."""
        return ready_made(self.repositories[hub], weight)

    def disk_bytes(self, weight: str) -> int:
        """The approximate size of the OpenVINO model."""
        return int(self.parameters * WEIGHT_BITS[weight] / 8)


def ready_made(repository: str, weight: str) -> str:
    """The OpenVINO organization's name for a model: `org/Name` in int8 is `OpenVINO/Name-int8-ov`."""
    return f"OpenVINO/{repository.rpartition('/')[2]}-{weight}-ov"


_R1_SAMPLING = {"temperature": 0.6, "top_p": 0.95}
_R1_ADVICE = "put all instructions into the user's message; use no system prompt"
_QWEN3_SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20.0}


def _on_both(repository: str) -> dict[Hub, str]:
    return {"huggingface": repository, "modelscope": repository}


_MODELS = (
    CatalogModel(
        name="deepseek-r1-distill-qwen-1.5b",
        repositories=_on_both("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        licence="MIT",
        parameters=1.78e9,
        context_tokens=131_072,
        architecture="qwen2",
        thinking="<think>, opened by the template",
        sampling=_R1_SAMPLING,
        advice=_R1_ADVICE,
    ),
    CatalogModel(
        name="deepseek-r1-distill-qwen-7b",
        repositories=_on_both("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        licence="MIT",
        parameters=7.62e9,
        context_tokens=131_072,
        architecture="qwen2",
        thinking="<think>, opened by the template",
        sampling=_R1_SAMPLING,
        advice=_R1_ADVICE,
    ),
    CatalogModel(
        name="phi-3-mini",
        repositories={
            "huggingface": "microsoft/Phi-3-mini-4k-instruct",
            "modelscope": "LLM-Research/Phi-3-mini-4k-instruct",
        },
        licence="MIT",
        parameters=3.82e9,
        context_tokens=4096,
        architecture="phi3",
    ),
    CatalogModel(
        name="tinyllama-1.1b",
        repositories={
            "huggingface": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            "modelscope": "AI-ModelScope/TinyLlama-1.1B-Chat-v1.0",
        },
        licence="Apache-2.0",
        parameters=1.10e9,
        context_tokens=2048,
        architecture="llama",
    ),
    CatalogModel(
        name="chatglm3-6b",
        repositories={"huggingface": "zai-org/chatglm3-6b", "modelscope": "ZhipuAI/chatglm3-6b"},
        licence="ChatGLM3-6B licence (commercial use after registration)",
        parameters=6.24e9,
        context_tokens=8192,
        architecture="chatglm",
        sampling={"temperature": 0.8, "top_p": 0.8},
        remote_code=True,
    ),
    *(
        CatalogModel(
            name=f"qwen3-{size.lower()}",
            repositories=_on_both(f"Qwen/Qwen3-{size}"),
            licence="Apache-2.0",
            parameters=parameters,
            context_tokens=40_960,
            architecture="qwen3",
            thinking="<think>, opened by the model",
            tools="hermes",
            sampling=_QWEN3_SAMPLING,
            advice="do not use greedy decoding while it thinks",
        )
        for size, parameters in (("0.6B", 0.75e9), ("1.7B", 2.03e9), ("4B", 4.02e9))
    ),
)
CATALOG = {model.name: model for model in _MODELS}
