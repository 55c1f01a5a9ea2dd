"""Every setting of Dray, with its type, default, bounds and description. Unknown names are errors.

One long module on purpose: a reader looks up any setting in one place, and the reference page and `dray settings` are
generated from it.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, time
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "DRAY_"
CLIENT_SECRET_VARIABLE = "DRAY_SIGN_ON_CLIENT_SECRET"
"""Dray's secret at the provider of single sign-on. It is no setting: those are in files, and Serve logs them."""
PRIVACY_KEYS = "DRAY_PRIVACY_KEYS"
"""Keys that encrypt what Redis and the files of batches keep (cluster.records.sealing)."""
BUNDLED = "bundled"

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Weight = Literal["int4", "int8", "fp16"]
Precision = Literal["fast", "balanced", "exact"]
StatusReaders = Literal["everyone", "keys", "admins"]

DEFAULT_STEP_TOKENS = 512
"""What `auto` is where `dray tune` has kept nothing."""


_HOST_NAME = re.compile(r"[^\s:/@*]+|[0-9A-Fa-f:]+")


def _host_name(name: str) -> str:
    """The name in lower case, as it is compared."""
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("must be a host name or an address, without scheme and port: dray.example.com")
    return name.lower()


HostName = Annotated[str, AfterValidator(_host_name)]

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]{1,255}")


def _origin(text: str) -> str:
    """The origin as browsers send it."""
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError("must be * or an origin, as scheme and host without a path: https://bot.example.com")
    return text.lower()


Origin = Annotated[str, AfterValidator(_origin)]

_NAME = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"([a-z0-9.-]{{1,253}}/)?{_NAME}=({_NAME})?")


def _label(text: str) -> str:
    """A Kubernetes label that none of Dray's own selectors uses."""
    if not _LABEL.fullmatch(text):
        raise ValueError("must be a Kubernetes label, as name=value: cost-center=bots")
    if text.startswith(("app.kubernetes.io/part-of=", "app.kubernetes.io/component=", "dray/", "ray.io/")):
        raise ValueError("must not be a label by which Dray, Ray or their policies select pods")
    return text


Label = Annotated[str, AfterValidator(_label)]


def _keyword(text: str) -> str:
    """The text without the white space around it."""
    if not (text := text.strip()):
        raise ValueError("must not be empty")
    return text


Keyword = Annotated[str, Field(max_length=100), AfterValidator(_keyword)]
# One name of a DNS label, as Kubernetes requires of namespaces, Secrets and ConfigMaps.
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")


def _auto_or_at_least(minimum: int) -> Callable[[object], object]:
    """One check with one message; those of a union's members would name the members."""

    def check(value: object) -> object:
        if value == "auto":
            return value
        if not _WHOLE_NUMBER.fullmatch(str(value)) or int(str(value)) < minimum:
            raise ValueError(f"must be auto, or a whole number of at least {minimum}")
        return int(str(value))

    return check


AutoOrPositive = Annotated[Literal["auto"] | Positive, BeforeValidator(_auto_or_at_least(1))]


def default_state_dir() -> Path:
    """A short private path for this user: it holds Ray's sockets, and a Unix socket's path has at most 107 bytes.

    Below XDG_RUNTIME_DIR, which no other user can enter, or else below the folder for temporary files.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    if runtime.is_dir() and runtime.stat().st_uid == os.getuid():
        return runtime / "dray"
    return Path(tempfile.gettempdir()) / f"dray-{os.getuid()}"


def default_models_dir() -> Path:
    """The user's cache folder for models."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "dray" / "models"


def default_data_dir() -> Path:
    """The user's folder for persistent data."""
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data else Path.home() / ".local" / "share") / "dray"


class Group(BaseModel):
    """A section of the settings. An unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OfficeHours(Group):
    """Weekly hours during which a model has a higher minimum of replicas, in the local time of Serve's controller."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        ("mon", "tue", "wed", "thu", "fri"), description="Days of the week on which the hours start."
    )
    start: time = Field(time(8), description="Time of day at which the hours start.")
    end: time = Field(
        time(18), description="Time of day at which the hours end; if earlier than `start`, on the next day."
    )
    replicas: Positive = Field(description="Minimum number of replicas during these hours.")

    def covers(self, now: datetime) -> bool:
        """Whether `now` is within these hours."""
        days = [_DAYS.index(day) for day in self.days]
        if self.start <= self.end:
            return now.weekday() in days and self.start <= now.time() < self.end
        yesterday = (now.weekday() - 1) % 7
        return (now.weekday() in days and now.time() >= self.start) or (yesterday in days and now.time() < self.end)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class RouteRule(Group):
    """A rule of a routed model: which requests go to which model. All of its conditions must hold."""

    to: str = Field(min_length=1, description="Name or alias of the model that answers, as another entry has it.")
    max_chars: Positive | None = Field(
        None, description="The conversation, without system messages, has at most this many characters."
    )
    min_chars: Positive | None = Field(None, description="The same has at least this many characters.")
    max_turns: Positive | None = Field(None, description="The conversation has at most this many messages of the user.")
    min_turns: Positive | None = Field(None, description="The same has at least this many messages of the user.")
    language: Literal["chinese", "other"] | None = Field(
        None, description="Language of the user's last message, by its script: `chinese` or `other`."
    )
    keywords: tuple[Keyword, ...] = Field(
        (),
        max_length=100,
        description="The user's last message has one of these words or phrases: plain text, in any case, whole words.",
    )
    tools: bool | None = Field(None, description="Whether the request has tools that may be called.")
    structured: bool | None = Field(
        None, description="Whether the request wants JSON, or an answer that is constrained in another way."
    )
    thinking: bool | None = Field(None, description="Whether the request asks for thinking by itself.")

    @property
    def is_default(self) -> bool:
        """Whether it takes every request."""
        return self == RouteRule(to=self.to)


class ModelSettings(Group):
    """A served model and its replicas."""

    source: str = Field(
        BUNDLED,
        description="Model to serve: `bundled`, a catalog name, a Hub id (org/name), a folder, a GGUF file, or a "
        "folder in a bucket: s3://bucket/folder, gs://bucket/folder or oss://bucket/folder (needs the extra "
        "`buckets`).",
    )
    weight: Weight = Field(
        "int8", description="Weight format in which a catalog or Hub model is downloaded or exported."
    )
    name: str = Field("", description="Model name in the API. Empty: the model's own name.")
    aliases: tuple[str, ...] = Field((), description="Additional model names in the API.")
    task: Literal["generate", "embed", "rerank"] = Field(
        "generate",
        description="Use of the model: `generate` answers, `embed` texts (/v1/embeddings), or `rerank` documents "
        "(/v1/rerank, /v1/score), for a cross-encoder or Qwen3-Reranker.",
    )
    scorer: Literal["none", "cosine"] = Field(
        "none",
        description="Whether an embedding model also answers /v1/rerank and /v1/score, by the cosine of its vectors: "
        "cheaper than a cross-encoder, and less exact.",
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="Pooling of an embedding model. auto: taken from its 1_Pooling/config.json, mean without one.",
    )
    replicas: Positive = Field(
        1,
        description="Engine replicas, each with its own cores and process; the minimum if max_replicas is set.",
    )
    cores_per_replica: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Whole cores per replica. 0: the remaining cores, divided among the replicas, at most 8 each.",
    )
    kv_cache_mb: Positive = Field(512, description="Maximum size of a replica's KV cache, in MiB.")
    max_num_seqs: Positive = Field(
        32, description="Maximum number of sequences that a replica decodes at a time; further ones wait."
    )
    max_num_batched_tokens: AutoOrPositive = Field(
        "auto",
        description="Maximum number of tokens in one engine step; longer prompts are prefilled in chunks of this size. "
        f"auto: what `dray tune` has measured on this machine, else {DEFAULT_STEP_TOKENS}.",
    )
    decode_slowdown: Annotated[float, Field(ge=1.1, le=100)] = Field(
        4.0,
        description="How many times as long as usual a step of running streams may take because it also computes part "
        "of a prompt: more gives sooner first tokens, less gives steadier streams.",
    )
    guess_tokens: bool = Field(
        True,
        description="Guess tokens from the prompt and from earlier text, and check several in one step, where "
        "measurements say that this is faster. A guess is kept only if the model would have chosen it; as in any other "
        "batch, rounding may tip a close choice.",
    )
    precision: Precision = Field(
        "balanced",
        description="How much accuracy the engine may give up for speed. exact: only the weights are INT8. balanced "
        "and fast: multiplications are too, in the way that is fastest on this processor, as measured at the model's "
        "first start; they may lose at most 0.01 and 0.02 nats a token (KL) over f32, and 1 and 2 % of perplexity.",
    )
    context_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="Maximum length of prompt and completion together, in tokens. 0: the model's own maximum."
    )
    stall_timeout_s: Seconds = Field(
        60,
        description="Maximum seconds without a sign of life, despite work, after which an engine is killed and "
        "restarted. Mostly it is sooner: 10 seconds, or 10 times what the engine's next step should take.",
    )
    max_replicas: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Maximum number of replicas under load, as far as nodes have free cores; 0 turns autoscaling off.",
    )
    target_wait_s: Seconds = Field(
        20,
        description="Replicas are added when the predicted time to process all waiting work exceeds this, in seconds.",
    )
    downscale_delay_s: Seconds = Field(300, description="Seconds of low load before a replica is removed.")
    office_hours: tuple[OfficeHours, ...] = Field(
        (), description="Weekly hours with a higher minimum of replicas, whatever the load; capped at max_replicas."
    )
    sleep_after_s: Annotated[float, Field(ge=0)] = Field(
        0,
        description="Seconds without a request after which all replicas stop and free their cores; the next request "
        "waits until they have started again. 0: never.",
    )
    start_timeout_s: Seconds = Field(300, description="Maximum time for an engine process to start, in seconds.")
    fallback: str = Field(
        "",
        description="Name or alias of the model that answers in this one's place while it has no replica, its queue is "
        "full, or its predicted wait exceeds target_wait_s. Empty: requests wait, or are refused.",
    )
    route: tuple[RouteRule, ...] = Field(
        (),
        max_length=100,
        description="Makes the entry a name without engines, whose requests other models answer: the first rule that "
        "holds says which; the last one has no condition. Only in `models`, with `name` and `aliases` at most.",
    )

    @property
    def given_names(self) -> tuple[str, ...]:
        """The names that the settings give it."""
        return tuple(filter(None, (self.name, *self.aliases)))

    @property
    def assumed_step_tokens(self) -> int:
        """`max_num_batched_tokens`; for auto the default, as only an engine's machine knows what was measured there."""
        return DEFAULT_STEP_TOKENS if self.max_num_batched_tokens == "auto" else self.max_num_batched_tokens

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is less than replicas ({self.replicas}); raise it, or set it to 0"
            )
        if self.max_replicas and self.sleep_after_s:
            raise ValueError(
                "sleep_after_s excludes max_replicas: a sleeping model has all its replicas or none; set only one"
            )
        if self.scorer == "cosine" and self.task != "embed":
            raise ValueError(f"scorer: cosine is for embedding models (task: embed); this one has task: {self.task}")
        if self.office_hours and not self.max_replicas:
            raise ValueError("office_hours need max_replicas: set it to the largest number of replicas")
        if self.fallback and self.task != "generate":
            raise ValueError(f"fallback is for models that generate text; this one has task: {self.task}")
        return self

    @model_validator(mode="after")
    def _route_is_complete(self) -> Self:
        if not self.route:
            return self
        if not self.name:
            raise ValueError("a model with a route needs a `name`, by which requests ask for it")
        allowed = {"name", "aliases", "route"}
        fields = {name: field.default for name, field in type(self).model_fields.items() if name not in allowed}
        if extra := [name for name, default in fields.items() if getattr(self, name) != default]:
            raise ValueError(f"{self.name} has a route, and so no engines: leave out {', '.join(extra)}")
        if not self.route[-1].is_default:
            raise ValueError(
                f"the route of {self.name} has no default: end it with a rule that has only `to`, for all requests "
                "that no other rule takes"
            )
        for number, rule in enumerate(self.route[:-1], 1):
            if rule.is_default:
                raise ValueError(
                    f"rule {number} of the route of {self.name} has no condition, so that the rules after it are never "
                    "used: add a condition, or make it the last one"
                )
        return self


class ServerSettings(Group):
    """How clients reach the service."""

    allowed_hosts: tuple[HostName, ...] = Field(
        (),
        description="Host names by which Dray is reached besides localhost, as through a proxy. Only while no API key "
        "is needed: requests with another name, or from web pages of other hosts, are then refused.",
    )


class ApiSettings(Group):
    """What requests may contain."""

    unknown_fields: Literal["ignore", "refuse"] = Field(
        "ignore",
        description="What happens to fields of a request that Dray does not know, as other servers have them: `ignore` "
        "answers without them and names them in the header X-Dray-Ignored; `refuse` answers 400.",
    )
    messages_thinking: Literal["requested", "always"] = Field(
        "requested",
        description="When /v1/messages returns blocks of thinking: if the request has `thinking`, as Anthropic "
        "does, or always.",
    )


class CorsSettings(Group):
    """Cross-origin resource sharing: web pages of other sites that may ask the API from a browser."""

    origins: tuple[Origin, ...] = Field(
        (),
        description="Origins of these pages, such as https://bot.example.com; * for all. A page that asks needs a key "
        "of its own; while no key is needed, only origins that are named here are answered, whatever * says.",
    )


class MetricsSettings(Group):
    """What /metrics shows."""

    vllm_names: bool = Field(
        False,
        description="Report metrics under the names of vLLM too (`vllm:num_requests_running` and others that mean the "
        "same), for dashboards made for it.",
    )


class RouterSettings(Group):
    """The routers: the HTTP service in front of the engines."""

    replicas: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Minimum number of router replicas, behind HAProxy. 0: 2 where a machine by itself has 4 cores or "
        "more, else 1. A router that dies breaks its streams: with only one, that is all of them. With several "
        "machines, each runs at most one.",
    )
    max_replicas: Annotated[int, Field(ge=0)] = Field(
        0, description="Maximum number of router replicas; 0 turns autoscaling off."
    )
    target_streams: Positive = Field(
        256, description="Requests in progress per router that autoscaling aims at, on average."
    )
    downscale_delay_s: Seconds = Field(300, description="Seconds of low load before a router is removed.")
    max_connections: Positive = Field(4096, description="Maximum number of concurrent connections through HAProxy.")
    thinking_field: Literal["reasoning_content", "reasoning", "both"] = Field(
        "reasoning_content",
        description="Field of chat completions that holds the thinking: DeepSeek's name, vLLM's newer name, or both.",
    )
    keep_alive_s: Seconds = Field(
        10, description="Seconds of silence after which a stream sends a comment, so that proxies keep it open."
    )
    control_tokens_in_prompt: bool = Field(
        True,
        description="Whether `prompt` of /v1/completions may contain control tokens, written as text such as "
        "`<|im_end|>` or as ids. false: such texts are texts, and such ids are refused; for programs that put what "
        "strangers wrote into prompts of their own. In messages, texts are never control tokens.",
    )

    @property
    def replica_minimum(self) -> int:
        """Minimum number of router replicas, at least 1."""
        return max(1, self.replicas)

    @property
    def replica_limit(self) -> int:
        """Maximum number of router replicas."""
        return max(self.replica_minimum, self.max_replicas)


class LimitSettings(Group):
    """Limits of a request. A request beyond a limit gets an error that names the limit."""

    body_bytes: Positive = Field(
        2_000_000, description="Maximum size of a request body, in bytes; larger ones get 413."
    )
    messages: Positive = Field(1024, description="Maximum number of messages in a request.")
    stop_strings: Positive = Field(4, description="Maximum number of stop strings in a request.")
    stop_string_chars: Positive = Field(256, description="Maximum length of a stop string, in characters.")
    choices: Positive = Field(20, description="Maximum number of choices (`n`, or prompts) of a request.")
    tools: Positive = Field(128, description="Maximum number of tools in a request.")
    json_depth: Positive = Field(64, description="Maximum nesting depth of a schema or of chat template arguments.")
    schema_parts: Positive = Field(
        1000,
        description="Maximum number of parts in the schemas that constrain an answer; each slows the engine's steps.",
    )
    embedding_inputs: Positive = Field(
        512,
        description="Maximum number of texts in an embeddings request, or of documents in a rerank or score request.",
    )
    output_tokens: Positive = Field(
        8192,
        description="Maximum number of completion tokens, thinking included; larger values are reduced to it.",
    )
    max_queued: Positive = Field(
        256,
        description="Maximum number of requests that wait per replica, beyond those it decodes; further ones get 503.",
    )
    reserved_tokens: Positive = Field(
        1024,
        description="Completion tokens charged to a team's quota in advance for a request without max_tokens; "
        "corrected to the actual number afterwards.",
    )
    request_timeout_s: Seconds = Field(
        600, description="Maximum duration of a request, in seconds; longer ones get 408."
    )
    receive_timeout_s: Seconds = Field(
        20, description="Maximum time for a request to arrive, body included, in seconds; slower ones get 408."
    )
    client_stall_s: Seconds = Field(
        60, description="Seconds without reading its stream after which a client is disconnected."
    )


class CacheSettings(Group):
    """The answer cache."""

    enabled: bool = Field(True, description="Store answers and return them when the same question is asked again.")
    url: str = Field(
        "",
        description="URL of the Redis for answers: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://. "
        "Empty: Dray starts its own server on this machine.",
    )
    memory_mb: Positive = Field(
        256, description="Maximum memory of Dray's own Redis server, in MiB; the least used answers are evicted first."
    )
    ttl_s: Positive = Field(86_400, description="Lifetime of a cached answer, in seconds (shortened by up to a tenth).")
    max_ttl_s: Positive = Field(
        2_592_000,
        description="Maximum lifetime that a request may set with the X-Dray-Cache-TTL header, in seconds.",
    )
    store: Literal["deterministic", "all"] = Field(
        "deterministic",
        description="Which complete answers are stored: `deterministic` ones (greedy or seeded), or all.",
    )
    timeout_s: Seconds = Field(
        0.05, description="Seconds to wait for this Redis; if it is slower, the request proceeds without the cache."
    )
    normalize: bool = Field(
        False,
        description="Treat questions that differ only in character width, spacing or closing punctuation as the same.",
    )
    similarity_model: str = Field(
        "",
        description="Name of a served embedding model that finds similar questions; their answer is returned only if "
        "their words surely mean the same too. Empty turns this off.",
    )
    similarity_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8,
        description="Minimum cosine similarity of two questions whose words say the same; what counts as near "
        "depends on the model.",
    )
    prefix_scope: Literal["all", "namespace"] = Field(
        "all",
        description="Whose prompts share the KV cache of a common start: those of `all`, or only those of one "
        "namespace, so that nobody can tell from an answer's time what others have asked. Teams that do not share "
        "answers are namespaces of their own.",
    )
    withhold_downvoted: bool = Field(
        False,
        description="Stop returning a cached answer as soon as somebody votes it down (POST /v1/feedback), and store "
        "none in its place for `max_ttl_s`.",
    )
    namespace: str = Field(
        "default", description="Namespace of the cached answers; answers are never shared across namespaces."
    )


class ResponseSettings(Group):
    """Stored responses, from which requests to /v1/responses go on by `previous_response_id`."""

    store: bool = Field(
        True,
        description="Store responses, each with its conversation, for the team that asked, unless a request says "
        "`store: false`, as OpenAI does. In the cache's Redis; without the cache none are stored.",
    )
    ttl_s: Positive = Field(86_400, description="Lifetime of a stored response, in seconds.")
    max_bytes: Positive = Field(
        262_144, description="Maximum size of a response with its conversation, in bytes; larger ones are not stored."
    )
    max_per_team: Positive = Field(
        1000, description="Maximum number of a team's stored responses; the oldest are removed first."
    )
    max_background: Positive = Field(
        32,
        description="Maximum number of a team's responses that are generated in the background at a time "
        "(`background: true`); more are refused with 429.",
    )


class BatchSettings(Group):
    """Files and batches: `/v1/files` and `/v1/batches`."""

    url: str = Field(
        "",
        pattern=r"^((s3|gs|oss)://[a-z0-9].*)?$",
        description="Folder in object storage for files and answers, such as `s3://bucket/batches` (extra `buckets`). "
        "Empty: `data_dir`, which only one machine's routers can read; with several machines, or several clusters with "
        "the same `teams.url`, there are no files then.",
    )
    file_bytes: Positive = Field(100_000_000, description="Maximum size of an uploaded file, in bytes.")
    file_lines: Positive = Field(50_000, description="Maximum number of lines of an uploaded file.")
    files_per_team: Positive = Field(500, description="Maximum number of a team's files.")
    bytes_per_team: Positive = Field(
        2_000_000_000, description="Size of all of a team's files, in bytes, from which on uploads are refused."
    )
    batches_per_team: Positive = Field(
        100,
        description="Maximum number of a team's batches; the oldest that have ended are removed first, and while none "
        "has ended, further ones get 429.",
    )
    file_ttl_s: Positive = Field(
        2_592_000, description="Lifetime of files, and of batches after their end, in seconds, unless a request says."
    )
    max_window_s: Positive = Field(
        604_800, description="Maximum `completion_window` of a batch, in seconds. Clients of OpenAI ask for `24h`."
    )
    upload_timeout_s: Seconds = Field(300, description="Maximum time for an uploaded file to arrive, in seconds.")
    lines_at_a_time: Positive = Field(
        128, description="Lines of batches that a router has in progress at a time; those of people go first anyway."
    )
    autoscale: bool = Field(
        False,
        description="Whether batch work (batches, `dray warm`, `service_tier: flex`) counts when replicas are added. "
        "false: it uses only replicas that people need.",
    )


class TeamSettings(Group):
    """Teams with their keys, quotas and usage."""

    url: str = Field(
        "",
        description="URL of the Redis for teams, in the forms of cache.url; it must not evict data. Empty: Dray starts "
        "its own server on this machine, which stores the teams in data_dir.",
    )
    timeout_s: Seconds = Field(
        0.25,
        description="Seconds to wait for this Redis; while it is slower, routers enforce quotas by their own counts.",
    )
    metrics_teams: tuple[str, ...] = Field(
        (),
        description="Teams that have their own label in the metrics; all others share the label `other`. Empty: the 20 "
        "oldest teams.",
    )


_CLAIM_OF_TEAM = re.compile(r".{1,255}=[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def _claim_of_team(text: str) -> str:
    """A value of a claim, and the team that it stands for."""
    if not _CLAIM_OF_TEAM.fullmatch(text):
        raise ValueError("must be a claim's value and a team, as VALUE=TEAM: /bots/support=support")
    return text


def _is_secure(url: str) -> bool:
    """Whether a URL is https, or leads to this machine, and names nothing but a place."""
    parts = urlsplit(url)
    secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    return bool(secure and parts.hostname and not parts.query and not parts.fragment and "@" not in parts.netloc)


def _issuer(url: str) -> str:
    """An issuer's URL. Without TLS anybody on the way could replace its keys."""
    if url and not _is_secure(url):
        raise ValueError("must be the provider's https:// URL as its tokens have it in `iss`, without a query")
    return url


def _public_url(url: str) -> str:
    """Where browsers reach Dray, without a slash at the end."""
    if url and not _is_secure(url):
        raise ValueError("must be an https:// URL without a query, as https://dray.example.com")
    return url.rstrip("/")


class SignOnSettings(Group):
    """Single sign-on: tokens of an OpenID Connect provider, accepted beside Dray's own keys."""

    issuer: Annotated[str, AfterValidator(_issuer)] = Field(
        "",
        description="Issuer of the tokens, exactly as they have it in `iss`: https://sso.example.com/realms/staff. Its "
        "keys are found by OpenID discovery. Empty: no tokens are accepted. With an issuer, every request needs a key "
        "or a token.",
    )
    audiences: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Values of `aud` of which a token must have one: Dray's own names at the provider."
    )
    team_claim: str = Field(
        "groups",
        description="Claim that decides the team. A path into nested claims has dots: realm_access.roles.",
    )
    teams: tuple[Annotated[str, AfterValidator(_claim_of_team)], ...] = Field(
        (),
        description="Teams by values of the claim, as `VALUE=TEAM`; the first entry whose value the token has counts. "
        "Empty: the claim has one value, and it is the team's name.",
    )
    admin_claim: str = Field("", description="Claim that decides who is an admin. Empty: `team_claim`.")
    admins: tuple[str, ...] = Field(
        (), description="Values of that claim that make an admin, who may do what an admin key may. Empty: none do."
    )
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = Field(
        ("RS256", "ES256"), description="Signature algorithms that a token may have. All are asymmetric."
    )
    clock_skew_s: Annotated[int, Field(ge=0, le=300)] = Field(
        60, description="Seconds by which the provider's clock may differ from this machine's."
    )
    client_id: str = Field(
        "",
        description="Dray's client id at the provider, with which admins sign on to the console (authorization code "
        "with PKCE). A confidential client's secret is in the variable DRAY_SIGN_ON_CLIENT_SECRET. Empty: they enter "
        "an admin key.",
    )
    public_url: Annotated[str, AfterValidator(_public_url)] = Field(
        "",
        description="URL at which browsers reach Dray: https://dray.example.com. At the provider, allow redirects to "
        "this URL with /console/callback appended.",
    )
    scopes: tuple[Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$")], ...] = Field(
        ("openid",), description="Scopes that the console asks for; some providers add groups only with one for them."
    )
    session_s: Annotated[int, Field(ge=60, le=7 * 86_400)] = Field(
        8 * 3600, description="Seconds after which an admin has to sign on to the console again."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.issuer and not self.audiences:
            raise ValueError("sign_on.issuer needs sign_on.audiences, or tokens for other services would be accepted")
        if self.client_id and not (self.issuer and self.public_url and "openid" in self.scopes):
            raise ValueError("sign_on.client_id needs sign_on.issuer, sign_on.public_url, and openid among the scopes")
        return self


class RequestLogSettings(Group):
    """A log of answered requests, without secrets and personal data, in files of the folder `requests` in data_dir."""

    enabled: bool = Field(
        False,
        description="Log each answered request with its question and answer, in which emails, telephone numbers, "
        "resident ids, card numbers, keys and passwords are replaced. What has no such form stays, as names do.",
    )
    keep_days: Annotated[int, Field(ge=1, le=3650)] = Field(30, description="Days after which a day's file is removed.")
    max_mb: Positive = Field(
        1024, description="Maximum size of all files of a machine, in MiB; the oldest days are removed first."
    )


class ModelPrice(Group):
    """What a model's tokens are worth."""

    model: str = Field(description="Name of the model, as usage has it.")
    input: Annotated[float, Field(ge=0, le=1e6)] = Field(0, description="Price of a million prompt tokens.")
    output: Annotated[float, Field(ge=0, le=1e6)] = Field(0, description="Price of a million completion tokens.")


class PriceSettings(Group):
    """Prices, by which usage is shown in money and teams get budgets."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(
        "USD", description="Currency of all prices and budgets, as three letters."
    )
    models: tuple[ModelPrice, ...] = Field(
        (),
        description="Price of each model: `model`, and `input` and `output` for a million tokens. A model without a "
        "price costs nothing, and no money is shown for it.",
    )


class AdminSettings(Group):
    """What administrators see."""

    request_texts_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        0,
        description="Seconds for which administrators see the beginning of the question and of the answer of recent "
        "requests (`dray requests`), unless a request names its user. A router that ends leaves them in Redis for up "
        "to an hour. 0: never.",
    )


class KubernetesSettings(Group):
    """What `dray k8s render` needs to know about a Kubernetes cluster."""

    image: str = Field(f"dray:{version('dray')}", description="Container image of every pod that runs Dray.")
    threads_per_core: Annotated[int, Field(ge=1, le=2)] = Field(
        2, description="Hardware threads per core on the engines' nodes; pods get whole cores."
    )
    models_claim: str = Field(
        "",
        description="PersistentVolumeClaim for the models; a Job downloads named models into it. Empty: no claim.",
    )
    models_image: str = Field(
        "", description="OCI image with the model folders at its root, mounted instead of a claim. Empty: no image."
    )
    models_path: Annotated[str, Field(pattern="^(/[^:]+)?$")] = Field(
        "",
        description="Folder of each node that keeps the models, mounted instead of a claim; the first pod that needs a "
        "model downloads it there. Empty: no such folder.",
    )
    fetch_image: str = Field(
        "",
        description="Image of what downloads models; exporting needs the `export` extra. Empty: `image`.",
    )
    storage_mb: Annotated[int, Field(ge=0)] = Field(
        0, description="Size of the claim, in MiB. 0: enough for the models, with a new version beside the old one."
    )
    answers_memory_mb: Positive = Field(
        1024, description="Memory for answers in their Redis server, in MiB; the least used are evicted first."
    )
    teams_memory_mb: Positive = Field(
        256, description="Memory for teams, keys and usage in their Redis server, in MiB; beyond it, writes fail."
    )
    gcs_memory_mb: Positive = Field(
        256, description="Memory for Ray's state in its Redis server, in MiB; beyond it, writes fail."
    )
    teams_disk_mb: Positive = Field(
        2048, description="Disk of the teams' Redis server, in MiB. It cannot change once the server runs."
    )
    gcs_disk_mb: Positive = Field(
        2048, description="Disk of the Redis server of Ray's state, in MiB. It cannot change once the server runs."
    )
    namespace: KubernetesName = Field("dray", description="Namespace of all objects.")
    labels: tuple[Label, ...] = Field(
        (),
        description="Labels of all objects and pods besides Dray's own, as `name=value`: for costs, or for policies.",
    )
    image_pull_secrets: tuple[KubernetesName, ...] = Field(
        (), description="Secrets with credentials of image registries, for all pods."
    )
    proxy: str = Field(
        "",
        pattern=r"^(https?://[^\s/@]+)?$",
        description="Proxy through which models are downloaded, without a password: `http://proxy.internal:3128`.",
    )
    ca_config_map: Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")] = Field(
        "",
        description=(
            "ConfigMap whose key `ca.crt` holds every certificate authority to trust in downloads and traces, private "
            "and public ones. Empty: the public ones."
        ),
    )
    dns_addresses: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description=(
            "Addresses of name servers that are not pods, besides 169.254.20.10: those of another DNS cache on the "
            "nodes, or of the cluster's DNS Service if the cache answers for it."
        ),
    )
    client_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description=(
            "Networks (CIDR) that may connect besides the namespaces labelled dray/clients=true: those of the nodes, "
            "for gateways on the host network, or of load balancers."
        ),
    )
    api_server_ports: tuple[Annotated[int, Field(gt=0, lt=65536)], ...] = Field(
        (), description="Ports of the Kubernetes API server besides 443 and 6443 (MicroK8s: 16443, minikube: 8443)."
    )
    ipv6: bool = Field(False, description="Pods have IPv6 addresses only.")


class ClusterSettings(Group):
    """A cluster of machines without Kubernetes: `dray up --head` on one, `dray join` on the others."""

    head: bool = Field(False, description="Let other machines join this one with `dray join`.")
    address: str = Field(
        "",
        description="IP address at which other machines reach this one. Empty: the address it sends packets from.",
    )
    port: Annotated[int, Field(gt=0, lt=65536)] = Field(
        6379, description="Port on which the head accepts other machines."
    )
    redis_port: Annotated[int, Field(gt=0, lt=65536)] = Field(
        6380, description="Port of the head's own Redis for answers; its Redis for teams uses the next port."
    )


class Settings(BaseSettings):
    """All settings. Sources in order of precedence: command line, DRAY_* environment, dray.yaml, defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on. 127.0.0.1 includes ::1, so all of localhost.")
    port: Annotated[int, Field(gt=0, lt=65536)] = Field(8000, description="Port to listen on.")
    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Private folder for sockets, logs and the run record; one per Dray. Keep its path short.",
    )
    lease_dir: Path | None = Field(
        None,
        description="Folder of the core locks, shared by every Dray on these cores. Empty: a folder of this user.",
    )
    models_dir: Path = Field(
        default_factory=default_models_dir, description="Folder of downloaded and exported models."
    )
    data_dir: Path = Field(
        default_factory=default_data_dir, description="Folder of the teams, keys and usage; one per Dray."
    )
    hub: Literal["huggingface", "modelscope"] = Field(
        "huggingface",
        description="Hub that models are downloaded from. For a mirror of Hugging Face, set the variable HF_ENDPOINT.",
    )
    page: bool = Field(
        True, description="Serve the chat page at /chat and the console at /console, if the `page` extra is installed."
    )
    status_page: StatusReaders = Field(
        "everyone",
        description="Who sees the status page at /status. `everyone`: whoever reaches Dray. `keys`: whoever may use "
        "the API. `admins`: who has an admin key, or has signed on to the console. /metrics has the same figures and "
        "needs no key: let a proxy keep it from strangers.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of logged lines."
    )
    log_prompts: bool = Field(
        False,
        description="Log the text of every question; the log's readers see it. Answers and keys are never logged.",
    )
    model: ModelSettings = ModelSettings()
    models: tuple[ModelSettings, ...] = Field(
        (),
        validate_default=True,
        description="Several served models; each inherits its unset values from `model`. Empty: only `model`.",
    )
    server: ServerSettings = ServerSettings()
    api: ApiSettings = ApiSettings()
    cors: CorsSettings = CorsSettings()
    metrics: MetricsSettings = MetricsSettings()
    router: RouterSettings = RouterSettings()
    limits: LimitSettings = LimitSettings()
    cache: CacheSettings = CacheSettings()
    responses: ResponseSettings = ResponseSettings()
    batches: BatchSettings = BatchSettings()
    teams: TeamSettings = TeamSettings()
    sign_on: SignOnSettings = SignOnSettings()
    request_log: RequestLogSettings = RequestLogSettings()
    prices: PriceSettings = PriceSettings()
    admin: AdminSettings = AdminSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def core_lock_dir(self) -> Path:
        """Folder of the core locks: `lease_dir`, or a folder of this user."""
        return self.lease_dir or default_state_dir() / "cores"

    @property
    def url(self) -> str:
        """Base URL of the API, ending in /v1."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}/v1"

    @property
    def served(self) -> tuple[ModelSettings, ...]:
        """Every model to serve, each with engines of its own."""
        return tuple(model for model in self.models if not model.route) or (self.model,)

    @property
    def routed(self) -> tuple[ModelSettings, ...]:
        """The names without engines, whose requests those answer."""
        return tuple(model for model in self.models if model.route)

    @model_validator(mode="before")
    @classmethod
    def _models_inherit_from_model(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("models"), list | tuple):
            return values
        shared = values.get("model")
        if not isinstance(shared, dict):
            return values
        return values | {"models": [shared | model if _inherits(model) else model for model in values["models"]]}

    @field_validator("models")
    @classmethod
    def _models_lead_to_served_ones(
        cls, models: tuple[ModelSettings, ...], info: ValidationInfo
    ) -> tuple[ModelSettings, ...]:
        served = [model for model in models if not model.route]
        routed = [model for model in models if model.route]
        if (single := info.data.get("model")) is not None:  # else it is what is wrong
            if single.route:
                raise ValueError("a model with a route is an entry of `models`, beside those that it leads to")
            check_targets(served or [single], routed)
        return models

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments: `load` reads the other sources itself, to record where each value came from."""
        return (init_settings,)


def _inherits(model: object) -> bool:
    """Whether this entry of `models` takes what it lacks from `model`: one with a route has no use for it."""
    return isinstance(model, dict) and not model.get("route")


def check_targets(served: Sequence[ModelSettings], routed: Sequence[ModelSettings]) -> None:
    """Raises ValueError where a route or a fallback leads to a model that cannot answer, or fallbacks in circles."""
    by_name = {name: model for model in served for name in model.given_names}
    routes = {name for model in routed for name in model.given_names}

    def target(name: str, where: str) -> ModelSettings:
        if name in routes:
            raise ValueError(f"{where} leads to {name}, which has a route itself: name a model with engines")
        if (model := by_name.get(name)) is None:
            known = f"there is {', '.join(by_name)}" if by_name else "none has a `name`"
            raise ValueError(
                f"{where} leads to {name!r}, but no model has this `name` or alias in the settings; {known}"
            )
        if model.task != "generate":
            raise ValueError(f"{where} leads to {name}, which generates no text: its task is {model.task}")
        return model

    for model in routed:
        for number, rule in enumerate(model.route, 1):
            target(rule.to, f"rule {number} of the route of {model.name}")
    for model in served:
        passed = [model]
        while (last := passed[-1]).fallback:
            following = target(last.fallback, f"the fallback of {last.name or last.source}")
            if following in passed:
                names = " -> ".join(one.name or one.source for one in (*passed, following))
                raise ValueError(f"the fallbacks lead in a circle: {names}; leave one of them out")
            passed.append(following)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached only from this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
