"""What the launcher does while Dray runs: it keeps Redis alive, carries out deployments and writes the record.

Nothing that fails here may end the service, unless Ray itself has ended.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from cluster.configuration import changed_fixed_settings, parse
from cluster.launch import log_file, membership
from cluster.launch.duty import Duty
from cluster.launch.preflight import LaunchError, check_change, with_routers
from cluster.launch.rollout import RolloutError, roll
from cluster.launch.serving import apply, one_line
from cluster.launch.state import DeployRequest, DeployRequestError, Record, take_deploy_request, write_record
from cluster.redis_server import OwnRedis
from cluster.serve_config import Routers

log = logging.getLogger("dray.launch")

_REVIVE_INTERVAL_S = 1.0
"""So that a Redis that dies right after each start is not started in a tight loop."""
_UPKEEP_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class _Rollout:
    """A deployment under way. request: its id. target: what will run. steps: takes it further, as `roll` does."""

    request: str
    target: Routers
    steps: Iterator[str]


class Supervisor:
    """Looks after a running Dray; call `reconcile` at regular intervals."""

    def __init__(
        self,
        routers: Routers,
        usable: int,
        redis_servers: Mapping[str, OwnRedis],
        check_ray: Callable[[], None],
        *,
        keys: bool,
    ) -> None:
        """
        routers: what Serve runs now. usable: cores that may be leased in all.
        redis_servers: those to keep alive, by what they hold.
        check_ray: raises RayEndedError once Ray has ended.
        keys: whether an API key exists.
        """
        self._routers = routers
        self._usable = usable
        self._check_ray = check_ray
        self._folder = routers.settings.state_dir
        self._rollout: _Rollout | None = None
        self._restore_due = False
        self._record = _record_of(routers, keys=keys)
        self._written: Record | None = None
        self._published: Routers | None = None
        revivals = [
            Duty(
                f"the Redis of {what} has ended and does not start again",
                partial(_revive, what, server),
                interval_s=_REVIVE_INTERVAL_S,
            )
            for what, server in redis_servers.items()
        ]
        upkeep = [
            Duty(
                f"changes of {what} are not kept on disk",
                partial(_keep_up, server),
                interval_s=_UPKEEP_INTERVAL_S,
            )
            for what, server in redis_servers.items()
        ]
        log_rotation = Duty(
            "the launcher's log is not rotated", partial(log_file.rotate, self._folder), interval_s=_UPKEEP_INTERVAL_S
        )
        restore = Duty("the failed deployment is only half undone", self._restore)
        deploy = Duty("cannot take deploy requests", self._deploy)
        self._publish = Duty("other machines cannot join", self._publish_terms)
        self._duties = (*revivals, *upkeep, log_rotation, restore, deploy, self._publish)
        self._write = Duty(f"cannot write the record that `dray status` reads, in {self._folder}", self._write_record)
        self._publish.run()
        self._write.run()

    def reconcile(self) -> None:
        """Revives Redis where it has ended, takes a deployment one step further, and updates the record.

        Raises RayEndedError, the only failure after which nothing can continue.
        """
        self._check_ray()
        for duty in self._duties:
            duty.run()
        self._write.run()

    def _deploy(self) -> None:
        if self._rollout is None:
            self._begin_rollout()
            return
        try:
            self._record = replace(self._record, rollout=next(self._rollout.steps))
        except StopIteration:
            self._finish_rollout()
        except Exception as error:  # noqa: BLE001 - whatever the reason, what ran before is to continue
            self._restore_due = not (isinstance(error, RolloutError) and error.restored)
            self._refuse(one_line(error))

    def _begin_rollout(self) -> None:
        try:
            request = take_deploy_request(self._folder)
        except DeployRequestError as error:
            self._refuse(str(error))
            return
        if request is None:
            return
        try:
            target, steps = self._plan(request)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the request, its sender is answered
            self._refuse(one_line(error), request.id)
            return
        self._restore_due = False
        self._rollout = _Rollout(request.id, target, steps)

    def _plan(self, request: DeployRequest) -> tuple[Routers, Iterator[str]]:
        """What the request wants to run, and the steps to it. Raises LaunchError, SettingsError."""
        settings = with_routers(parse(request.settings), self._usable)
        if changed := changed_fixed_settings(settings, self._routers.settings):
            raise LaunchError(f"{', '.join(changed)} cannot change while Dray runs; use dray down, then dray up")
        found, free, beside = check_change(settings, self._routers.engines)
        target = replace(self._routers, settings=settings, engines=found.engines)
        leased = sum(engine.leased_cores for engine in self._routers.engines)
        return target, roll(self._routers, target, min(free, self._usable - leased), beside=beside)

    def _finish_rollout(self) -> None:
        assert self._rollout is not None
        self._routers = self._rollout.target
        running = _record_of(self._routers, keys=self._record.keys)
        self._record = replace(running, answered=self._rollout.request)
        self._rollout = None

    def _refuse(self, reason: str, request: str = "") -> None:
        """Answers a deploy request with the reason why what ran before continues."""
        if self._rollout is not None:
            request, self._rollout = self._rollout.request, None
        log.warning("deployment refused: %s", reason)
        self._record = replace(self._record, rollout="", answered=request, refused=reason)

    def _restore(self) -> None:
        if self._restore_due:
            apply(self._routers)
            self._restore_due = False

    def _publish_terms(self) -> None:
        if self._routers.settings.cluster.head and self._published is not self._routers:
            membership.publish([engine.model for engine in self._routers.engines], self._routers.urls)
            self._published = self._routers

    def _write_record(self) -> None:
        problems = [duty.problem for duty in self._duties if duty.problem]
        record = replace(self._record, problems=problems)
        if record != self._written:
            write_record(self._folder, record)
            self._written = record


def _revive(what: str, server: OwnRedis) -> None:
    if server.revive():
        log.warning("the Redis of %s had ended; started it again", what)


def _keep_up(server: OwnRedis) -> None:
    server.rotate_log()
    server.resume_persistence()


def _record_of(routers: Routers, *, keys: bool) -> Record:
    settings = routers.settings
    return Record(
        os.getpid(),
        "ready",
        url=settings.url,
        models=[engine.model.name for engine in routers.engines],
        redis=routers.redis_url,
        teams=routers.teams_url,
        keys=keys,
        settings=settings.model_dump(mode="json"),
    )
