"""All that a router has of files and batches, put together."""

from pathlib import Path

from starlette.routing import Route
from starlette.types import ASGIApp

from cluster.objects.batch_files import Tally
from cluster.objects.forgetting import forget_lines
from cluster.objects.store import object_store
from cluster.records.client import BlockingRedis
from cluster.settings import Settings
from deployments.api.admin_access import AdminAccess
from deployments.batches.asking import LineAsker
from deployments.batches.batch_store import LEASE_S, BatchStore
from deployments.batches.batches_api import BatchesApi
from deployments.batches.file_store import FileStore
from deployments.batches.files_api import FilesApi
from deployments.batches.runner import BatchRunner
from deployments.batches.sweeping import Sweeper
from deployments.common.redis import RedisStore
from deployments.common.tasks import TaskSupervisor
from deployments.observability.metrics import RouterMetrics
from deployments.tenancy.auth import Authenticator


class Batches:
    """Files and batches of one router. Close it at the end."""

    def __init__(
        self,
        settings: Settings,
        teams: RedisStore,
        authenticator: Authenticator,
        admin: AdminAccess,
        metrics: RouterMetrics,
        data_dir: Path,
    ) -> None:
        """teams: the Redis that evicts nothing. data_dir: of this machine."""
        self.store = store = BatchStore(settings.batches, teams, LEASE_S)
        objects = object_store(settings, data_dir)
        files = FileStore(settings.batches, teams, objects) if objects else None
        self._objects = objects
        self._asker = asker = LineAsker(authenticator)
        self._runner = (
            BatchRunner(store, files, asker, settings.batches.lines_at_a_time, metrics) if files is not None else None
        )
        self._sweeper = Sweeper(teams, store, files, authenticator) if files is not None else None
        self._files_api = FilesApi(settings, authenticator, files, store)
        self._batches_api = BatchesApi(settings, authenticator, admin, files, store)
        if self._runner is not None:
            self._batches_api.on_change = self._runner.wake

    def routes(self) -> list[Route]:
        """All of them."""
        return [*self._files_api.routes(), *self._batches_api.routes()]

    def forget_lines(self, client: BlockingRedis, owner: str, user: str) -> tuple[int, str]:
        """As deployments.api.feedback.ForgetLines says. Blocks."""
        tally = forget_lines(client, self._objects, owner, user) if self._objects is not None else Tally()
        return tally.count, tally.fault

    def use(self, app: ASGIApp) -> None:
        """Takes the application that answers the lines."""
        self._asker.use(app)

    def start(self, tasks: TaskSupervisor) -> None:
        """Runs the batches of all teams, and removes what has expired."""
        if self._runner is not None and self._sweeper is not None:
            tasks.supervise("run batches", self._runner.run_forever)
            tasks.supervise("remove expired files", self._sweeper.sweep_forever)

    async def close(self) -> None:
        """Leaves its tasks to the other routers."""
        if self._runner is not None:
            await self._runner.close()
