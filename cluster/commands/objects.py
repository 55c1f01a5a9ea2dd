"""Where commands find the files of batches."""

from pathlib import Path

from cluster.commands.console import Config, StateDir, fail, load_settings
from cluster.configuration import variable
from cluster.launch.state import read_record
from cluster.models.bucket_url import BucketUrlError
from cluster.models.hubs import HubError
from cluster.objects.sealed import SealedStore
from cluster.objects.store import object_store
from cluster.records.batches import OWNERS, owner_key
from cluster.records.client import BlockingRedis
from cluster.settings import BatchSettings, ClusterSettings


def batch_objects(client: BlockingRedis, config: Config, state_dir: StateDir) -> SealedStore | None:
    """Where the running Dray keeps files of batches, which may have other settings than this command; else where the
    settings say. None where there are no files. Ends the command if there are some, and it cannot reach them.

    client: of the teams.
    """
    settings = load_settings(config, state_dir=state_dir).settings
    record = read_record(settings.state_dir)
    given = record.settings if record is not None else {}
    batches = BatchSettings.model_validate(given.get("batches", settings.batches))
    cluster = ClusterSettings.model_validate(given.get("cluster", settings.cluster))
    settings = settings.model_copy(update={"batches": batches, "cluster": cluster})
    try:
        objects = object_store(settings, Path(given.get("data_dir", settings.data_dir)))
    except (BucketUrlError, HubError) as error:
        raise fail(f"files of batches cannot be reached: {error}") from None
    if objects is None and any(client.hgetall(owner_key("files", name.decode())) for name in client.smembers(OWNERS)):
        raise fail(f"there are files of batches, in a bucket: set {variable('batches.url')} here as it is for Dray")
    return objects
