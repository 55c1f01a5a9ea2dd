"""The check of the keys that encrypt what Redis keeps."""

from collections.abc import Iterator

import redis

from cluster.doctor.finding import Finding
from cluster.launch.state import Record
from cluster.records.privacy import check_keys
from cluster.records.sealing import SealingError, vault
from cluster.redis_client import RedisUrlError, connect
from cluster.settings import PRIVACY_KEYS, Settings


def check_privacy(settings: Settings, record: Record | None) -> Iterator[Finding]:
    """Nothing where encryption is off, and was never on. A Redis that does not answer is another check's."""
    fault = ""
    try:
        own = vault()
        if url := settings.teams.url or (record.teams if record else ""):
            with connect(url) as client:
                fault = check_keys(client)
    except SealingError as error:
        yield Finding("privacy", "failed", str(error))
        return
    except (redis.RedisError, RedisUrlError, OSError):
        pass
    if fault:
        yield Finding("privacy", "failed", fault)
    elif own is not None:
        yield Finding("privacy", "passed", f"what Redis keeps is encrypted with the first key in {PRIVACY_KEYS}")
