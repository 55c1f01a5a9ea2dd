"""What Serve runs, as a Serve config: an application for the routers, and one for each exact engine.

An engine's application is named by all that its answers depend on. So a new version of a model is another application:
it starts beside the old one, the routers go over to it, and none ever sends it what was meant for the other.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cluster.models.folder import ServedModel
from cluster.settings import Group, ModelSettings, Settings

ROUTERS = "dray"
"""Name of the routers' application."""
ROUTER, ENGINE = "router", "engine"
"""Names of the deployments in the two kinds of application."""

# Import paths of the applications. Named, not imported: `cluster` knows nothing of requests.
_ROUTER_IMPORT, _ENGINE_IMPORT = "deployments.app:router", "deployments.app:engine"
_LEAST_LOOK_BACK_S = 10.5
"""Serve wants to look back for longer than the 10 s between two reports."""


class EngineArgs(Group):
    """What an engine replica is told. Whatever changes here makes another application."""

    model: ModelSettings
    cores: int
    models_dir: Path
    core_lock_dir: Path
    log_level: str


class RouterArgs(Group):
    """What a router is told. engines: the engine application of each model, by the model's name."""

    settings: Settings
    redis_url: str
    teams_url: str
    engines: dict[str, str]


@dataclass(frozen=True)
class Engine:
    """An exact engine: a model, the whole cores of a replica, and how many replicas."""

    settings: Settings
    model: ServedModel
    cores: int
    replicas: int

    @cached_property
    def args(self) -> EngineArgs:
        # What changes no answer and no process is left out: it may change while the replicas run on.
        of_no_weight = {"aliases": (), "replicas": 1, "sleep_after_s": 0.0}
        return EngineArgs(
            model=self.model.settings.model_copy(update=of_no_weight),
            cores=self.cores,
            models_dir=self.settings.models_dir,
            core_lock_dir=self.settings.core_lock_dir,
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
        """Cores that all its replicas lease together."""
        return self.replicas * self.cores

    def describe(self) -> dict[str, Any]:
        """Its application, as a Serve config has it."""
        limits = self.settings.limits
        deployment = {
            "name": ENGINE,
            **self._scale(),
            "max_ongoing_requests": self.model.settings.max_running + limits.waiting,
            "max_queued_requests": limits.waiting,
            "health_check_period_s": 5,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": limits.request_timeout_s,
            "ray_actor_options": {"num_cpus": self.cores},
        }
        return {
            "name": self.application,
            "route_prefix": None,
            "import_path": _ENGINE_IMPORT,
            "args": self.args.model_dump(mode="json"),
            "deployments": [deployment],
        }

    def _scale(self) -> dict[str, Any]:
        sleep_after_s = self.model.settings.sleep_after_s
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
            "num_replicas": self.settings.router.replicas,
            # New routers answer before the old ones go, and those let their streams finish.
            "max_surge_percent": 100,
            "max_ongoing_requests": self.settings.router.max_connections,
            "health_check_period_s": 5,
            "graceful_shutdown_timeout_s": self.settings.limits.request_timeout_s,
            # Their work is light; a whole core of Ray's would be one fewer for the engines.
            "ray_actor_options": {"num_cpus": 0},
        }
        return {
            "name": ROUTERS,
            "route_prefix": "/",
            "import_path": _ROUTER_IMPORT,
            # A twentieth of a cache hit's time; Dray logs what did not go well, and counts all.
            "logging_config": {"enable_access_log": False},
            "args": args.model_dump(mode="json"),
            "deployments": [deployment],
        }


def serve_config(routers: Routers, engines: Iterable[Engine] | None = None) -> dict[str, Any]:
    """The whole config. engines: those that run; the routers' own if not given."""
    running = routers.engines if engines is None else engines
    return {"applications": [routers.describe(), *(engine.describe() for engine in running)]}
