"""What a machine must have to join others: the same versions, and the very models that are served there.

The head writes it where Ray keeps what all its nodes are to know; only who has the token can read it.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.models.folder import KnownModel, ModelFolderError, ServedModel, open_model
from cluster.settings import ModelSettings

_KEY, _NAMESPACE = b"cluster", b"dray"
_ANSWER_S = 10
_PACKAGES = ("dray", "ray", "openvino-genai", "transformers")


class JoinError(Exception):
    """This machine cannot join, and why."""


@dataclass(frozen=True, slots=True)
class ClusterTerms:
    """versions: of what must be alike. models: what is served, as settings have it; with the fingerprint of each."""

    versions: dict[str, str]
    models: list[dict[str, Any]]
    fingerprints: list[str]


def versions() -> dict[str, str]:
    """Those of this machine. Of Python, the minor: Ray's processes send each other pickled objects."""
    return {"python": ".".join(platform.python_version_tuple()[:2])} | {name: version(name) for name in _PACKAGES}


def publish(models: Sequence[KnownModel]) -> None:
    """Says what machines must have that join this one."""
    from ray.experimental.internal_kv import _internal_kv_put

    terms = ClusterTerms(
        versions(), [one.settings.model_dump(mode="json") for one in models], [one.fingerprint for one in models]
    )
    _internal_kv_put(_KEY, json.dumps(asdict(terms)), namespace=_NAMESPACE)


def read_terms(head: str) -> ClusterTerms:
    """What a head asks for. head: its HOST:PORT. Raises JoinError where it cannot be reached, or the token is wrong."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # as Ray's own commands do

    try:
        said = GcsClient(address=head).internal_kv_get(_KEY, _NAMESPACE, timeout=_ANSWER_S)
    except Exception as error:  # noqa: BLE001 - Ray raises whatever the connection did; a user gets one line
        lines = str(error).strip().splitlines()
        if "uthenticat" in str(error) or "token" in str(error).lower():
            raise JoinError(f"{head} refuses this token; `dray up --head` prints the right one") from None
        raise JoinError(f"no head answers at {head}: {lines[0] if lines else type(error).__name__}") from None
    if said is None:
        raise JoinError(f"what answers at {head} is no Dray that is ready")
    return ClusterTerms(**json.loads(said))


def check_versions(terms: ClusterTerms) -> None:
    """Raises JoinError where this machine's differ."""
    here = versions()
    if different := [name for name, there in terms.versions.items() if here.get(name) != there]:
        said = ", ".join(f"{name} {here.get(name, 'none')} here and {terms.versions[name]} there" for name in different)
        raise JoinError(f"versions differ: {said}; install the same ones")


def check_models(terms: ClusterTerms, models_dir: Path) -> list[ServedModel]:
    """The models, as they lie on this machine. Raises JoinError where one is missing or another."""
    found = []
    for given, fingerprint in zip(terms.models, terms.fingerprints, strict=True):
        try:
            model = open_model(ModelSettings(**given), models_dir)
        except ModelFolderError as error:
            raise JoinError(f"{error}") from None
        if model.fingerprint != fingerprint:
            raise JoinError(
                f"{model.name} in {model.folder} is another than the one that is served there "
                f"(fingerprint {model.fingerprint[:12]}, not {fingerprint[:12]}); fetch or copy it anew"
            )
        found.append(model)
    return found
