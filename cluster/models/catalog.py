"""Models with a short name: their repositories, licences, and how their authors recommend to use them."""

from dataclasses import dataclass, field
from typing import Literal

from cluster.models.tasks import Task

Hub = Literal["huggingface", "modelscope"]
WEIGHT_BITS = {"int4": 4.5, "int8": 8.0, "fp16": 16.0, "fp32": 32.0}
"""Bits per parameter on disk. INT4 includes the groups' scales and the layers that stay at INT8."""


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """How an embedding model's makers use it.

    pooling: how the tokens' vectors become the text's. dimensions: of a vector. query, passage: what stands before a
    text that searches, and before one that is to be found. shortened: trained so that a vector's beginning is one too.
    """

    pooling: Literal["cls", "mean", "last"]
    dimensions: int
    query: str = ""
    passage: str = ""
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model of the catalog.

    repositories: the original weights on each hub; the names of ready-made OpenVINO models follow from them.
    parameters: a count. context_tokens: maximum of prompt and completion together. thinking: how it marks its
    thinking, or "none". tools: the format of its tool calls, or "none". sampling: what its authors recommend. advice:
    one more recommendation, or empty. remote_code: whether the export needs Python code from the repository.
    embedding: how to use it, if its task is `embed`.
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
    task: Task = "generate"
    embedding: EmbeddingUse | None = None

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
        name="deepseek-r1-distill-llama-8b",
        repositories=_on_both("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        licence="MIT; derived from Llama 3.1, whose licence applies too",
        parameters=8.03e9,
        context_tokens=131_072,
        architecture="llama",
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
            thinking="<think>, opened by the model; off with reasoning_effort: none",
            tools="hermes",
            sampling=_QWEN3_SAMPLING,
            advice="do not use greedy decoding while it thinks",
        )
        for size, parameters in (("0.6B", 0.75e9), ("1.7B", 2.03e9), ("4B", 4.02e9), ("8B", 8.19e9))
    ),
    CatalogModel(
        name="phi-4-mini",
        repositories={
            "huggingface": "microsoft/Phi-4-mini-instruct",
            "modelscope": "LLM-Research/Phi-4-mini-instruct",
        },
        licence="MIT",
        parameters=3.84e9,
        context_tokens=131_072,
        architecture="phi3",
        tools="phi",
    ),
    CatalogModel(
        name="phi-4-mini-reasoning",
        repositories={
            "huggingface": "microsoft/Phi-4-mini-reasoning",
            "modelscope": "LLM-Research/Phi-4-mini-reasoning",
        },
        licence="MIT",
        parameters=3.84e9,
        context_tokens=131_072,
        architecture="phi3",
        thinking="<think>, opened by the model",
        sampling={"temperature": 0.8, "top_p": 0.95},
        advice="trained for mathematics; it always thinks",
    ),
    CatalogModel(
        name="smollm3-3b",
        repositories=_on_both("HuggingFaceTB/SmolLM3-3B"),
        licence="Apache-2.0",
        parameters=3.08e9,
        context_tokens=65_536,
        architecture="smollm3",
        thinking="<think>, opened by the model; off with reasoning_effort: none, or /no_think in the system prompt",
        sampling={"temperature": 0.6, "top_p": 0.95},
        advice="English, French, Spanish, German, Italian and Portuguese",
    ),
    CatalogModel(
        name="bge-small-zh-v1.5",
        repositories=_on_both("BAAI/bge-small-zh-v1.5"),
        licence="MIT",
        parameters=24e6,
        context_tokens=512,
        architecture="bert",
        task="embed",
        embedding=EmbeddingUse("cls", 512, query="为这个句子生成表示以用于检索相关文章："),
        advice="Chinese; the query's instruction is for searches, not for comparing sentences",
    ),
    CatalogModel(
        name="bge-m3",
        repositories=_on_both("BAAI/bge-m3"),
        licence="MIT",
        parameters=568e6,
        context_tokens=8192,
        architecture="xlm-roberta",
        task="embed",
        embedding=EmbeddingUse("cls", 1024),
        advice="more than 100 languages; needs no instructions",
    ),
    CatalogModel(
        name="multilingual-e5-small",
        repositories=_on_both("intfloat/multilingual-e5-small"),
        licence="MIT",
        parameters=118e6,
        context_tokens=512,
        architecture="bert",
        task="embed",
        embedding=EmbeddingUse("mean", 384, query="query: ", passage="passage: "),
        advice="send input_type with every text; query for both sides when sentences are compared",
    ),
    CatalogModel(
        name="gte-multilingual-base",
        repositories={
            "huggingface": "Alibaba-NLP/gte-multilingual-base",
            "modelscope": "iic/gte_sentence-embedding_multilingual-base",
        },
        licence="Apache-2.0",
        parameters=305e6,
        context_tokens=8192,
        architecture="new",
        remote_code=True,
        task="embed",
        embedding=EmbeddingUse("cls", 768, shortened=True),
        advice="more than 70 languages; vectors may be shortened to 128 dimensions",
    ),
    CatalogModel(
        name="qwen3-embedding-0.6b",
        repositories=_on_both("Qwen/Qwen3-Embedding-0.6B"),
        licence="Apache-2.0",
        parameters=0.6e9,
        context_tokens=32_768,
        architecture="qwen3",
        task="embed",
        embedding=EmbeddingUse(
            "last",
            1024,
            query="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
            shortened=True,
        ),
        advice="more than 100 languages; vectors may be shortened to 32 dimensions",
    ),
    CatalogModel(
        name="bge-reranker-v2-m3",
        repositories=_on_both("BAAI/bge-reranker-v2-m3"),
        licence="Apache-2.0",
        parameters=568e6,
        context_tokens=8192,
        architecture="xlm-roberta",
        task="rerank",
        advice="multilingual; its makers cut query and document to 512 or 1024 tokens (max_tokens_per_doc)",
    ),
    CatalogModel(
        name="qwen3-reranker-0.6b",
        repositories=_on_both("Qwen/Qwen3-Reranker-0.6B"),
        licence="Apache-2.0",
        parameters=0.6e9,
        context_tokens=40_960,
        architecture="qwen3",
        task="rerank",
        advice="more than 100 languages; its makers cut query and document to 8192 tokens together",
    ),
)
CATALOG = {model.name: model for model in _MODELS}
