"""Every setting of Dray, once: typed, described, and strict about what it does not know."""

import os
import tempfile
from datetime import datetime, time
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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


class OfficeHours(Group):
    """A time of the week at which a model has at least so many replicas, by the controller's clock."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        ("mon", "tue", "wed", "thu", "fri"), description="Days of the week."
    )
    start: time = Field(time(8), description="From this time of the day.")
    end: time = Field(time(18), description="To this time of the day; earlier than `start`: of the next day.")
    replicas: Positive = Field(description="Replicas that there are at least.")

    def covers(self, now: datetime) -> bool:
        """Whether it is that time."""
        days = [_DAYS.index(day) for day in self.days]
        if self.start <= self.end:
            return now.weekday() in days and self.start <= now.time() < self.end
        yesterday = (now.weekday() - 1) % 7
        return (now.weekday() in days and now.time() >= self.start) or (yesterday in days and now.time() < self.end)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


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
    max_num_seqs: Positive = Field(32, description="Sequences that a replica decodes at a time; the rest wait.")
    max_num_batched_tokens: Positive = Field(
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
    max_replicas: Annotated[int, Field(ge=0)] = Field(
        0,
        description="With more load there are more replicas than `replicas`, up to so many, where nodes have cores for "
        "them. 0: no more.",
    )
    target_wait_s: Seconds = Field(
        20,
        description="Where the replicas need longer than this for what waits, by their pace, there are to be more.",
    )
    downscale_delay_s: Seconds = Field(
        300, description="A replica goes once fewer have been enough for this long, in seconds."
    )
    office_hours: tuple[OfficeHours, ...] = Field(
        (), description="Times of the week at which there are more replicas, whatever the load; up to max_replicas."
    )
    sleep_after_s: Annotated[float, Field(ge=0)] = Field(
        0,
        description="Without a request for this long, the replicas end and free their cores; the next request starts "
        "them and waits. 0: never.",
    )
    start_timeout_s: Seconds = Field(300, description="An engine process must be ready within this time.")

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        if self.max_replicas and self.sleep_after_s:
            raise ValueError("a model that sleeps has all its replicas or none: sleep_after_s excludes max_replicas")
        if self.office_hours and not self.max_replicas:
            raise ValueError("office_hours need max_replicas")
        return self


class RouterSettings(Group):
    """The ingress: HTTP in front of the engines."""

    replicas: Positive = Field(
        1, description="Router replicas, with several machines at most one on each; HAProxy spreads over them."
    )
    max_replicas: Annotated[int, Field(ge=0)] = Field(
        0, description="Up to so many of them as streams come, where it is more than replicas; 0: always as many."
    )
    target_streams: Positive = Field(
        256, description="Where their number follows the load: requests under way in each, on average."
    )
    downscale_delay_s: Seconds = Field(300, description="So long fewer must have been enough before one goes.")
    max_connections: Positive = Field(4096, description="Connections that HAProxy takes at a time.")
    thinking_field: Literal["reasoning_content", "reasoning", "both"] = Field(
        "reasoning_content",
        description="Where chat completions tell the thinking: DeepSeek's name, vLLM's newer one, or both.",
    )
    keep_alive_s: Seconds = Field(
        10, description="A stream that has nothing to say for this long gets a comment, so that no proxy cuts it."
    )

    @property
    def replica_limit(self) -> int:
        """Replicas that there may be."""
        return self.replicas if self.replicas > self.max_replicas else self.max_replicas


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
    max_queued: Positive = Field(
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
    max_ttl_s: Positive = Field(
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
    similarity_model: str = Field(
        "",
        description="Name of a served embedding model that finds questions in other words; their answer is given where "
        "every word that carries meaning is the same too. Empty: no such thing.",
    )
    similarity_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
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
    metrics_teams: tuple[str, ...] = Field(
        (),
        description="Teams that have series of their own in the metrics; all others together are `other`. Empty: the "
        "20 oldest teams.",
    )


class KubernetesSettings(Group):
    """What `dray k8s render` needs to know of a cluster beyond the service itself."""

    image: str = Field(f"dray:{version('dray')}", description="Container image of every pod that runs Dray.")
    threads_per_core: Annotated[int, Field(ge=1, le=2)] = Field(
        2, description="Hardware threads of a core on the nodes that run engines; a pod gets whole cores."
    )
    models_claim: str = Field(
        "", description="PersistentVolumeClaim that holds the models; a Job fetches those that are named into it."
    )
    models_image: str = Field(
        "", description="OCI image whose root holds the models' folders, mounted in place of a claim."
    )
    fetch_image: str = Field(
        "",
        description="Image of the Job that fetches models. Empty: `image`; one with the export extra can export too.",
    )
    storage_mb: Annotated[int, Field(ge=0)] = Field(
        0, description="Size of the claim, in MiB. 0: what the models need, a new version beside the old one."
    )


class ClusterSettings(Group):
    """Several machines as one, without Kubernetes: `dray up --head` on one, `dray join` on the others."""

    head: bool = Field(False, description="Take other machines in.")
    address: str = Field(
        "", description="IP address at which the other machines reach this one. Empty: where it sends packets from."
    )
    port: Annotated[int, Field(gt=0, lt=65536)] = Field(6379, description="Port at which a head takes machines in.")
    redis_port: Annotated[int, Field(gt=0, lt=65536)] = Field(
        6380, description="Port of a head's own Redis of answers; that of teams has the next one."
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
    page: bool = Field(True, description="Serve the chat page at /chat, where the extra `page` is installed.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least serious log line kept.")
    log_prompts: bool = Field(
        False, description="Log the text of every question, for those who may see it; answers and keys never are."
    )
    model: ModelSettings = ModelSettings()
    models: tuple[ModelSettings, ...] = Field(
        (), description="Several models at once. Each takes from `model` what it does not say. Empty: `model` alone."
    )
    router: RouterSettings = RouterSettings()
    limits: LimitSettings = LimitSettings()
    cache: CacheSettings = CacheSettings()
    teams: TeamSettings = TeamSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def core_lock_dir(self) -> Path:
        return self.lease_dir or default_state_dir() / "cores"

    @property
    def url(self) -> str:
        """Where clients connect: the base URL, ending in /v1."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}/v1"

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
