"""The Serve config: one application for the routers, one for each engine version, one for the chat page.

The name of an engine's application contains a hash of everything that its answers depend on. A new version of a model
is therefore a new application: it starts beside the old one, the routers switch to it, and no request for one version
reaches the other.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any

from cluster.configuration import variable
from cluster.intervals import Intervals
from cluster.models.folder import KnownModel
from cluster.redis_client import public_url
from cluster.settings import Group, ModelSettings, Settings, StatusReaders, is_loopback

ROUTERS = "dray"
"""Name of the routers' Serve application."""
ROUTER, ENGINE, PAGE = "router", "engine", "page"
"""Names of the deployment in each kind of application."""
PAGE_PREFIX, CONSOLE_PATH = "/chat", "/console"
"""Of the pages' application, and of the console in it."""

# Import paths of the applications. Strings, because `cluster` must not import `deployments`.
_ROUTER_IMPORT, _ENGINE_IMPORT = "deployments.app:router", "deployments.app:engine"
_PAGE_IMPORT = "deployments.pages.service:page"
REQUEST_ROUTER = "deployments.routing.serve_router:PrefixAwareRouter"
"""Import path of the class that picks replicas."""
_POLICY = "cluster.autoscaling:PredictedWait"
_MIN_LOOK_BACK_S = 10.5
"""Serve's look-back period must exceed the 10 s between two reports."""


class EngineArgs(Group):
    """Arguments of an engine application. Any change in them creates a new application.

    isolate_prefixes: requests share cached prompts only within their namespace.
    """

    model: ModelSettings
    cores: int
    log_level: str
    isolate_prefixes: bool = False


class RouterArgs(Group):
    """Arguments of the routers. engines: the name of each model's engine application, by model name.

    An empty Redis URL is read from the router's environment, from the variable of its setting: the URL may contain a
    password, and Serve writes these arguments into its logs.
    """

    settings: Settings
    redis_url: str
    teams_url: str
    engines: dict[str, str]

    def with_urls(self, environment: Mapping[str, str]) -> "RouterArgs":
        """A copy with empty URLs filled in from the environment."""
        urls = {
            "redis_url": self.redis_url or environment.get(variable("cache.url"), ""),
            "teams_url": self.teams_url or environment.get(variable("teams.url"), ""),
        }
        return self.model_copy(update=urls)


class PageArgs(Group):
    """Arguments of the chat page and the console.

    api_url: base URL of the API that they call, ending in /v1. host: the address that Dray listens on. teams_url: the
    Redis that says whether a key is needed, as in RouterArgs. sign_on: whether the console offers single sign-on.
    status_page: who sees the status page.
    """

    api_url: str
    body_bytes: int
    receive_timeout_s: float
    log_level: str
    host: str
    allowed_hosts: tuple[str, ...]
    teams_url: str
    sign_on: bool = False
    status_page: StatusReaders = "everyone"

    def redis_of_keys(self, environment: Mapping[str, str]) -> str:
        """The URL of the Redis that says whether a key is needed; empty where other machines can connect: one is."""
        return (self.teams_url or environment.get(variable("teams.url"), "")) if is_loopback(self.host) else ""


@dataclass(frozen=True)
class Engine:
    """An engine version: a model, the number of whole cores per replica, and the number of replicas."""

    settings: Settings
    model: KnownModel
    cores: int
    replicas: int

    @cached_property
    def args(self) -> EngineArgs:
        # Settings that affect neither answers nor the process are reset, so that changing them keeps the replicas.
        neutral = {"aliases": (), "replicas": 1, "sleep_after_s": 0.0, "max_replicas": 0}
        neutral |= {"target_wait_s": 20.0, "downscale_delay_s": 300.0, "office_hours": (), "fallback": ""}
        return EngineArgs(
            model=self.model.settings.model_copy(update=neutral),
            cores=self.cores,
            log_level=self.settings.log_level,
            isolate_prefixes=self.settings.cache.prefix_scope == "namespace",
        )

    @cached_property
    def application(self) -> str:
        """Name of the Serve application: the model's name and a hash of its fingerprint and the arguments."""
        identity = json.dumps([self.model.fingerprint, self.args.model_dump(mode="json")], sort_keys=True)
        slug = re.sub(r"[^a-z0-9.-]+", "-", self.model.name.lower())
        return f"engine-{slug}-{blake2b(identity.encode(), digest_size=5).hexdigest()}"

    def with_replicas(self, replicas: int) -> "Engine":
        """A copy with a different number of replicas."""
        return replace(self, replicas=replicas)

    @property
    def leased_cores(self) -> int:
        """Cores that the minimum number of replicas lease together."""
        return self.replicas * self.cores

    def application_config(self) -> dict[str, Any]:
        """The application's entry in the Serve config."""
        limits = self.settings.limits
        deployment = {
            "name": ENGINE,
            **self._scale(),
            "max_ongoing_requests": self.model.settings.max_num_seqs + limits.max_queued,
            "max_queued_requests": limits.max_queued,
            # Serve replaces a replica that fails three times.
            "health_check_period_s": 5,
            "health_check_timeout_s": 10,
            "graceful_shutdown_timeout_s": limits.request_timeout_s,
            "ray_actor_options": {"num_cpus": self.cores},
        }
        if self.model.settings.task == "generate":
            deployment["request_router_config"] = {
                "request_router_class": REQUEST_ROUTER,
                "request_routing_stats_period_s": Intervals.of(self.settings).routing_stats,
            }
        return {
            "name": self.application,
            "route_prefix": None,
            "import_path": _ENGINE_IMPORT,
            "args": self.args.model_dump(mode="json"),
            "deployments": [deployment],
        }

    def _scale(self) -> dict[str, Any]:
        settings = self.model.settings
        if settings.max_replicas > self.replicas:
            policy_args = {
                "model": self.model.name,
                "target_wait_s": settings.target_wait_s,
                "office_hours": [hours.model_dump(mode="json") for hours in settings.office_hours],
            }
            interval_s = Intervals.of(self.settings).scaling_reports
            return {
                "autoscaling_config": {
                    # Deprecated; but ray 2.60 does not read the variable that is to replace it.
                    "metrics_interval_s": interval_s,
                    # The policy takes the newest values only. Replicas note them once in a fifth of this time.
                    "look_back_period_s": 5 * interval_s,
                    "min_replicas": self.replicas,
                    "max_replicas": settings.max_replicas,
                    "upscale_delay_s": 0,
                    "downscale_delay_s": settings.downscale_delay_s,
                    "policy": {"policy_function": _POLICY, "policy_kwargs": policy_args},
                }
            }
        if not settings.sleep_after_s:
            return {"num_replicas": self.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": 0,
                "initial_replicas": self.replicas,
                "max_replicas": self.replicas,
                # All or none: any request wakes all replicas.
                "target_ongoing_requests": 1e-3,
                "upscale_delay_s": 0,
                "downscale_delay_s": settings.sleep_after_s,
                "look_back_period_s": max(_MIN_LOOK_BACK_S, min(30.0, settings.sleep_after_s)),
            }
        }


@dataclass(frozen=True)
class Routers:
    """The routers and the engines that they send requests to."""

    settings: Settings
    redis_url: str
    teams_url: str
    engines: tuple[Engine, ...]

    @property
    def urls(self) -> dict[str, str]:
        """The URLs of the Redis servers that are used, by the environment variables of their settings."""
        urls = {variable("cache.url"): self.redis_url, variable("teams.url"): self.teams_url}
        return {name: url for name, url in urls.items() if url}

    def application_config(self) -> dict[str, Any]:
        """The application's entry in the Serve config."""
        engines = {engine.model.name: engine.application for engine in self.engines}
        redis_url, teams_url = (public_url(url) for url in (self.redis_url, self.teams_url))
        settings = _public_settings(self.settings)
        args = RouterArgs(settings=settings, redis_url=redis_url, teams_url=teams_url, engines=engines)
        deployment = {
            "name": ROUTER,
            **self._scale(),
            "max_ongoing_requests": self.settings.router.max_connections,
            "health_check_period_s": 2,
            "health_check_timeout_s": 5,
            "graceful_shutdown_timeout_s": self.settings.limits.request_timeout_s,
            # Routers need little CPU; a core that Ray reserved for them would be lost to the engines.
            "ray_actor_options": {"num_cpus": 0},
        }
        if self.settings.cluster.head and self.settings.router.replica_limit > 1:
            # At most one per machine, so that no machine takes all down with it; a rollout replaces them one by one.
            deployment["max_replicas_per_node"] = 1
        else:
            # New routers serve before the old ones stop, and the old ones let their streams finish.
            deployment["max_surge_percent"] = 100
        return {
            "name": ROUTERS,
            "route_prefix": "/",
            "import_path": _ROUTER_IMPORT,
            # Dray logs failures and counts every request itself. Serve formats a line for each request, which costs a
            # twentieth of a cache hit, even with its access log off (ray 2.60), unless the log level excludes it.
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
            "args": args.model_dump(mode="json"),
            "deployments": [deployment],
        }

    def _scale(self) -> dict[str, Any]:
        router = self.settings.router
        if router.replica_limit == router.replica_minimum:
            return {"num_replicas": router.replica_minimum}
        return {
            "autoscaling_config": {
                "min_replicas": router.replica_minimum,
                "max_replicas": router.replica_limit,
                "target_ongoing_requests": router.target_streams,
                "upscale_delay_s": 5,
                "downscale_delay_s": router.downscale_delay_s,
                "look_back_period_s": _MIN_LOOK_BACK_S,
            }
        }


def _public_settings(settings: Settings) -> Settings:
    cache = settings.cache.model_copy(update={"url": public_url(settings.cache.url)})
    teams = settings.teams.model_copy(update={"url": public_url(settings.teams.url)})
    return settings.model_copy(update={"cache": cache, "teams": teams})


def serve_config(routers: Routers, engines: Iterable[Engine] | None = None) -> dict[str, Any]:
    """The whole Serve config. engines: the engines to run. None: those that the routers send requests to."""
    running = routers.engines if engines is None else engines
    page = [_page(routers)] if has_page(routers.settings) else []
    return {"applications": [routers.application_config(), *(engine.application_config() for engine in running), *page]}


def has_page(settings: Settings) -> bool:
    """Whether the chat page is served: it is enabled, and gradio is installed."""
    return settings.page and find_spec("gradio") is not None


def _page(routers: Routers) -> dict[str, Any]:
    settings, limits = routers.settings, routers.settings.limits
    args = PageArgs(
        api_url=settings.url,
        body_bytes=limits.body_bytes,
        receive_timeout_s=limits.receive_timeout_s,
        log_level=settings.log_level,
        host=settings.host,
        allowed_hosts=settings.server.allowed_hosts,
        teams_url=public_url(routers.teams_url),
        sign_on=bool(settings.sign_on.client_id),
        status_page=settings.status_page,
    )
    deployment = {
        "name": PAGE,
        # gradio keeps a conversation in the process that started it.
        "num_replicas": 1,
        "max_ongoing_requests": settings.router.max_connections,
        # An open page keeps its connection open; do not wait for it.
        "graceful_shutdown_timeout_s": 2,
        "ray_actor_options": {"num_cpus": 0},
    }
    return {
        "name": PAGE,
        "route_prefix": PAGE_PREFIX,
        "import_path": _PAGE_IMPORT,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        "args": args.model_dump(mode="json"),
        "deployments": [deployment],
    }
