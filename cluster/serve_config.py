"""What Serve runs, as a Serve config: an application for the routers, one for each exact engine, one for the chat page.

An engine's application is named by all that its answers depend on. So a new version of a model is another application:
it starts beside the old one, the routers go over to it, and none ever sends it what was meant for the other.
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
from cluster.models.folder import KnownModel
from cluster.settings import Group, ModelSettings, Settings

ROUTERS = "dray"
"""Name of the routers' application."""
ROUTER, ENGINE, PAGE = "router", "engine", "page"
"""Names of the deployments in the kinds of application."""
PAGE_PREFIX = "/chat"

# Import paths of the applications. Named, not imported: `cluster` knows nothing of requests.
_ROUTER_IMPORT, _ENGINE_IMPORT = "deployments.app:router", "deployments.app:engine"
_PAGE_IMPORT = "deployments.pages.service:page"
REQUEST_ROUTER = "deployments.routing.serve_router:PrefixAwareRouter"
"""Import path of what chooses replicas."""
_POLICY = "cluster.autoscaling:PredictedWait"
_LEAST_LOOK_BACK_S = 10.5
"""Serve wants to look back for longer than the 10 s between two reports."""


class EngineArgs(Group):
    """What an engine replica is told. Whatever changes here makes another application."""

    model: ModelSettings
    cores: int
    log_level: str


class RouterArgs(Group):
    """What a router is told. engines: the engine application of each model, by the model's name.

    A Redis URL that is empty here is in the router's environment, under its setting's variable: in a cluster it holds
    a password, and whoever may read a Serve config need not know that.
    """

    settings: Settings
    redis_url: str
    teams_url: str
    engines: dict[str, str]

    def with_urls(self, environment: Mapping[str, str]) -> "RouterArgs":
        """The same with the URLs that only the environment has."""
        return self.model_copy(
            update={
                "redis_url": self.redis_url or environment.get(variable("cache.url"), ""),
                "teams_url": self.teams_url or environment.get(variable("teams.url"), ""),
            }
        )


class PageArgs(Group):
    """What the chat page is told. api_url: base URL of the API that it asks, ending in /v1."""

    api_url: str
    body_bytes: int
    log_level: str


@dataclass(frozen=True)
class Engine:
    """An exact engine: a model, the whole cores of a replica, and how many replicas."""

    settings: Settings
    model: KnownModel
    cores: int
    replicas: int

    @cached_property
    def args(self) -> EngineArgs:
        # What changes no answer and no process is left out: it may change while the replicas run on.
        of_no_weight = {"aliases": (), "replicas": 1, "sleep_after_s": 0.0, "max_replicas": 0}
        of_no_weight |= {"target_wait_s": 20.0, "downscale_delay_s": 300.0, "office_hours": ()}
        return EngineArgs(
            model=self.model.settings.model_copy(update=of_no_weight),
            cores=self.cores,
            log_level=self.settings.log_level,
        )

    @cached_property
    def application(self) -> str:
        """The name of its application."""
        said = json.dumps([self.model.fingerprint, self.args.model_dump(mode="json")], sort_keys=True)
        slug = re.sub(r"[^a-z0-9.-]+", "-", self.model.name.lower())
        return f"engine-{slug}-{blake2b(said.encode(), digest_size=5).hexdigest()}"

    def with_replicas(self, replicas: int) -> "Engine":
        """The same engine with another number of replicas."""
        return replace(self, replicas=replicas)

    @property
    def leased(self) -> int:
        """Cores that all its replicas lease together, as many as there are at least."""
        return self.replicas * self.cores

    def describe(self) -> dict[str, Any]:
        """Its application, as a Serve config has it."""
        limits = self.settings.limits
        deployment = {
            "name": ENGINE,
            **self._scale(),
            "max_ongoing_requests": self.model.settings.max_num_seqs + limits.max_queued,
            "max_queued_requests": limits.max_queued,
            "health_check_period_s": 5,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": limits.request_timeout_s,
            "ray_actor_options": {"num_cpus": self.cores},
        }
        if self.model.settings.task == "generate":
            deployment["request_router_config"] = {
                "request_router_class": REQUEST_ROUTER,
                "request_routing_stats_period_s": 1,
            }
        return {
            "name": self.application,
            "route_prefix": None,
            "import_path": _ENGINE_IMPORT,
            "args": self.args.model_dump(mode="json"),
            "deployments": [deployment],
        }

    def _scale(self) -> dict[str, Any]:
        chosen = self.model.settings
        sleep_after_s = chosen.sleep_after_s
        if chosen.max_replicas > self.replicas:
            hours = [one.model_dump(mode="json") for one in chosen.office_hours]
            told = {"model": self.model.name, "target_wait_s": chosen.target_wait_s, "office_hours": hours}
            return {
                "autoscaling_config": {
                    "min_replicas": self.replicas,
                    "max_replicas": chosen.max_replicas,
                    "upscale_delay_s": 0,
                    "downscale_delay_s": chosen.downscale_delay_s,
                    "policy": {"policy_function": _POLICY, "policy_kwargs": told},
                }
            }
        if not sleep_after_s:
            return {"num_replicas": self.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": 0,
                "initial_replicas": self.replicas,
                "max_replicas": self.replicas,
                # All or none: a model that is awake has all its replicas.
                "target_ongoing_requests": 1e-3,
                "upscale_delay_s": 0,
                "downscale_delay_s": sleep_after_s,
                "look_back_period_s": max(_LEAST_LOOK_BACK_S, min(30.0, sleep_after_s)),
            }
        }


@dataclass(frozen=True)
class Routers:
    """The routers, and the engines that they send requests to."""

    settings: Settings
    redis_url: str
    teams_url: str
    engines: tuple[Engine, ...]

    def describe(self) -> dict[str, Any]:
        """Their application, as a Serve config has it."""
        engines = {engine.model.name: engine.application for engine in self.engines}
        args = RouterArgs(settings=self.settings, redis_url=self.redis_url, teams_url=self.teams_url, engines=engines)
        deployment = {
            "name": ROUTER,
            **self._scale(),
            "max_ongoing_requests": self.settings.router.max_connections,
            "health_check_period_s": 5,
            "graceful_shutdown_timeout_s": self.settings.limits.request_timeout_s,
            # Their work is light; a whole core of Ray's would be one fewer for the engines.
            "ray_actor_options": {"num_cpus": 0},
        }
        if self.settings.cluster.head and self.settings.router.replica_limit > 1:
            # One on each machine, so that no machine takes all with it; in a rollout they go one by one.
            deployment["max_replicas_per_node"] = 1
        else:
            # New routers answer before the old ones go, and those let their streams finish.
            deployment["max_surge_percent"] = 100
        return {
            "name": ROUTERS,
            "route_prefix": "/",
            "import_path": _ROUTER_IMPORT,
            # Dray logs what did not go well, and counts all. Serve makes a line for each request, a twentieth of a hit,
            # also where its access log is off (ray 2.60), unless the level leaves it out.
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
            "args": args.model_dump(mode="json"),
            "deployments": [deployment],
        }

    def _scale(self) -> dict[str, Any]:
        chosen = self.settings.router
        if chosen.replica_limit == chosen.replicas:
            return {"num_replicas": chosen.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": chosen.replicas,
                "max_replicas": chosen.replica_limit,
                "target_ongoing_requests": chosen.target_streams,
                "upscale_delay_s": 5,
                "downscale_delay_s": chosen.downscale_delay_s,
                "look_back_period_s": _LEAST_LOOK_BACK_S,
            }
        }


def serve_config(routers: Routers, engines: Iterable[Engine] | None = None) -> dict[str, Any]:
    """The whole config. engines: those that run; the routers' own if not given."""
    running = routers.engines if engines is None else engines
    page = [_page(routers.settings)] if has_page(routers.settings) else []
    return {"applications": [routers.describe(), *(engine.describe() for engine in running), *page]}


def has_page(settings: Settings) -> bool:
    """Whether there is a chat page: it is wanted, and what it needs is installed."""
    return settings.page and find_spec("gradio") is not None


def _page(settings: Settings) -> dict[str, Any]:
    args = PageArgs(api_url=settings.url, body_bytes=settings.limits.body_bytes, log_level=settings.log_level)
    deployment = {
        "name": PAGE,
        # gradio keeps a conversation in the process that began it.
        "num_replicas": 1,
        "max_ongoing_requests": settings.router.max_connections,
        # An open page holds a connection for as long as it is open.
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
