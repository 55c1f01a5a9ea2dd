"""Every setting of Dray, once: typed, described, and strict about what it does not know."""

import os
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "DRAY_"
BUNDLED = "bundled"

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Weight = Literal["int4", "int8", "fp16"]


def default_state_dir() -> Path:
    """A short private path for this user: Ray's sockets live below it, and Unix socket paths end at 107 bytes."""
    return Path(tempfile.gettempdir()) / f"dray-{os.getuid()}"


def default_models_dir() -> Path:
    """The user's cache folder for models."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "dray" / "models"


def default_data_dir() -> Path:
    """The user's folder for what must last."""
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data else Path.home() / ".local" / "share") / "dray"


class Group(BaseModel):
    """A section of the settings; a name it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Group):
    """A model that is served, and the replicas that serve it."""

    source: str = Field(
        BUNDLED,
        description="What to serve: `bundled`, a name of the catalog, a Hub id (org/name), or a folder.",
    )
    weight: Weight = Field("int8", description="Weight format in which a model that is named is fetched or exported.")
    name: str = Field("", description="Name that clients ask for. Empty: the model's own name.")
    aliases: tuple[str, ...] = Field((), description="Further names that clients may ask for.")
    task: Literal["generate", "embed"] = Field(
        "generate", description="What the model is for: answers, or embeddings (/v1/embeddings)."
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="How an embedding model's tokens become one vector. auto: by its 1_Pooling/config.json, or mean.",
    )
    replicas: Positive = Field(1, description="Engine replicas, each with its own cores and its own engine process.")
    cores_per_replica: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Whole cores for each replica. 0: the cores that are left, divided by the replicas, at most 8.",
    )
    kv_cache_mb: Positive = Field(512, description="Upper bound of a replica's KV cache, in MiB.")
    max_running: Positive = Field(32, description="Sequences that a replica decodes at a time; the rest wait.")
    max_batched_tokens: Positive = Field(
        512, description="Tokens in one engine step; longer prompts are prefilled in pieces of this size."
    )
    dynamic_quantization_group_size: Annotated[int, Field(ge=0)] = Field(
        128, description="Group size of the activations' INT8 quantization; 0 turns it off."
    )
    context_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="Longest prompt and completion together, in tokens. 0: what the model was made for."
    )
    stall_timeout_s: Seconds = Field(
        60,
        description="An engine process with work and no finished step for this long is killed and restarted.",
    )
    sleep_after_s: Annotated[float, Field(ge=0)] = Field(
        0,
        description="Without a request for this long, the replicas end and free their cores; the next request starts "
        "them and waits. 0: never.",
    )
    start_timeout_s: Seconds = Field(300, description="An engine process must be ready within this time.")


class RouterSettings(Group):
    """The ingress: HTTP in front of the engines."""

    replicas: Positive = Field(1, description="Router replicas; HAProxy spreads connections over them.")
    max_connections: Positive = Field(4096, description="Connections that HAProxy takes at a time.")
    thinking_field: Literal["reasoning_content", "reasoning", "both"] = Field(
        "reasoning_content",
        description="Where chat completions tell the thinking: DeepSeek's name, vLLM's newer one, or both.",
    )
    keep_alive_s: Seconds = Field(
        10, description="A stream that has nothing to say for this long gets a comment, so that no proxy cuts it."
    )


class LimitSettings(Group):
    """What a request may cost. Beyond each limit there is an error that names it."""

    body_bytes: Positive = Field(2_000_000, description="Largest request body, in bytes (413 beyond it).")
    messages: Positive = Field(1024, description="Most messages in one request.")
    stop_strings: Positive = Field(4, description="Most stop strings in one request.")
    stop_string_chars: Positive = Field(256, description="Longest stop string, in characters.")
    choices: Positive = Field(8, description="Most choices (`n`, or prompts) of one request.")
    tools: Positive = Field(128, description="Most tools in one request.")
    json_depth: Positive = Field(64, description="Deepest nesting of a schema, or of a chat template's arguments.")
    schema_parts: Positive = Field(
        1000, description="Most parts of the schemas that an answer is held to: each is work in the engine's steps."
    )
    embedding_inputs: Positive = Field(512, description="Most texts in one request for embeddings.")
    output_tokens: Positive = Field(
        8192,
        description="Most completion tokens of one request, thinking included; larger wishes are cut to it.",
    )
    waiting: Positive = Field(
        256, description="Requests that each replica holds beyond those it decodes; further ones get 503."
    )
    reserved_tokens: Positive = Field(
        1024,
        description="Completion tokens that a request's team is charged before it is answered, where the request sets "
        "no max_tokens; settled by what was made.",
    )
    request_timeout_s: Seconds = Field(600, description="Longest time for one request, in seconds (408 beyond it).")
    client_stall_s: Seconds = Field(
        60, description="A client that does not read its stream for this long, in seconds, is cut off."
    )


class CacheSettings(Group):
    """The answer cache."""

    enabled: bool = Field(True, description="Keep answers and give them again for the same question.")
    url: str = Field(
        "",
        description="URL of a Redis: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://. Empty: a "
        "server of Dray's own on this machine.",
    )
    memory_mb: Positive = Field(256, description="Memory of Dray's own server, in MiB; least used answers go first.")
    ttl_s: Positive = Field(86_400, description="How long an answer is kept, in seconds (shortened by up to a tenth).")
    most_ttl_s: Positive = Field(
        2_592_000,
        description="Longest that a request's X-Dray-Cache-TTL may ask to keep its answer, in seconds.",
    )
    store: Literal["deterministic", "all"] = Field(
        "deterministic", description="Which complete answers are kept: greedy or seeded ones, or all."
    )
    timeout_s: Seconds = Field(0.05, description="A slower Redis is treated as absent for that request.")
    normalize: bool = Field(
        False,
        description="Take questions that differ in width, spacing and closing marks alone for the same question.",
    )
    similar: str = Field(
        "",
        description="Name of a served embedding model that finds questions in other words; their answer is given where "
        "every word that carries meaning is the same too. Empty: no such thing.",
    )
    similar_least: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9, description="Least cosine of two questions' vectors for which they are compared further."
    )
    namespace: str = Field("default", description="Answers are shared within a namespace, never across.")


class TeamSettings(Group):
    """Teams, their keys, quotas and usage."""

    url: str = Field(
        "",
        description="URL of the Redis that keeps them, as cache.url has it; one that never evicts them. Empty: a "
        "server of Dray's own on this machine, which keeps them in data_dir.",
    )
    timeout_s: Seconds = Field(
        0.25, description="While this Redis is slower, quotas hold by each router's own counting."
    )


class Settings(BaseSettings):
    """All of it. Sources, strongest first: command line, DRAY_* environment, dray.yaml, defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(gt=0, lt=65536)] = Field(8000, description="Port to listen on.")
    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Private folder for sockets, logs and the record of what runs. One Dray for each. Keep it short.",
    )
    lease_dir: Path | None = Field(
        None,
        description="Folder of the core locks, shared by every Dray that shares these cores. Empty: one for this user.",
    )
    models_dir: Path = Field(
        default_factory=default_models_dir, description="Where models that were fetched or exported are kept."
    )
    data_dir: Path = Field(
        default_factory=default_data_dir, description="Where teams, keys and usage are kept. One Dray for each."
    )
    hub: Literal["huggingface", "modelscope"] = Field(
        "huggingface", description="Where models are fetched from; HF_ENDPOINT names a mirror of the first."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least serious log line kept.")
    model: ModelSettings = ModelSettings()
    models: tuple[ModelSettings, ...] = Field(
        (), description="Several models at once. Each takes from `model` what it does not say. Empty: `model` alone."
    )
    router: RouterSettings = RouterSettings()
    limits: LimitSettings = LimitSettings()
    cache: CacheSettings = CacheSettings()
    teams: TeamSettings = TeamSettings()

    @property
    def core_lock_dir(self) -> Path:
        return self.lease_dir or default_state_dir() / "cores"

    @property
    def served(self) -> tuple[ModelSettings, ...]:
        """Every model to serve."""
        return self.models or (self.model,)

    @model_validator(mode="before")
    @classmethod
    def _models_take_from_model(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("models"), list | tuple):
            return given
        shared = given.get("model")
        if not isinstance(shared, dict):
            return given
        return given | {"models": [shared | one if isinstance(one, dict) else one for one in given["models"]]}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is handed over: load() reads the sources itself, to remember where each value came from."""
        return (init_settings,)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
