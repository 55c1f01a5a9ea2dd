"""The terms on which a machine may join others: the same versions, and exactly the models that are served there.

The head publishes them in Ray's key-value store, which can only be read with the cluster's token.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.models.folder import KnownModel, ModelFolderError, ServedModel, open_model
from cluster.settings import ModelSettings

_KEY, _NAMESPACE = b"cluster", b"dray"
_TIMEOUT_S = 10
_PACKAGES = ("dray", "ray", "openvino", "tokenizers")


class JoinError(Exception):
    """This machine cannot join, and why."""


@dataclass(frozen=True, slots=True)
class ClusterTerms:
    """What the head publishes.

    versions: by package; they must be equal. models: settings of each served model. fingerprints: of each model.
    urls: of the Redis servers, with their passwords, by environment variable.
    """

    versions: dict[str, str]
    models: list[dict[str, Any]]
    fingerprints: list[str]
    urls: dict[str, str]


def versions() -> dict[str, str]:
    """This machine's versions. Of Python only the minor version: Ray's processes exchange pickled objects."""
    return {"python": ".".join(platform.python_version_tuple()[:2])} | {name: version(name) for name in _PACKAGES}


def publish(models: Sequence[KnownModel], urls: Mapping[str, str]) -> None:
    """Publishes the terms for machines that join this one. urls: as in ClusterTerms."""
    from ray.experimental.internal_kv import _internal_kv_put

    settings = [model.settings.model_dump(mode="json") for model in models]
    terms = ClusterTerms(versions(), settings, [model.fingerprint for model in models], dict(urls))
    _internal_kv_put(_KEY, json.dumps(asdict(terms)), namespace=_NAMESPACE)


def read_terms(head: str) -> ClusterTerms:
    """Reads a head's terms. head: its HOST:PORT. Raises JoinError if it cannot be reached or the token is wrong."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # as Ray's own commands do

    try:
        published = GcsClient(address=head).internal_kv_get(_KEY, _NAMESPACE, timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - Ray raises errors of many types here; a user gets one line
        lines = str(error).strip().splitlines()
        if "uthenticat" in str(error) or "token" in str(error).lower():
            raise JoinError(f"{head} refuses this token; use the one that `dray up --head` prints") from None
        raise JoinError(f"no head answers at {head}: {lines[0] if lines else type(error).__name__}") from None
    if published is None:
        raise JoinError(f"{head} answers, but is not a Dray that is ready")
    return ClusterTerms(**json.loads(published))


def check_versions(terms: ClusterTerms) -> None:
    """Raises JoinError if this machine's versions differ from the head's."""
    here = versions()
    differences = [
        f"{name} {here.get(name, 'none')} here and {version} there"
        for name, version in terms.versions.items()
        if here.get(name) != version
    ]
    if differences:
        raise JoinError(f"versions differ: {', '.join(differences)}; install the head's versions here")


def check_models(terms: ClusterTerms, models_dir: Path) -> list[ServedModel]:
    """Opens this machine's copies of the models. Raises JoinError if one is missing or differs."""
    models = []
    for settings, fingerprint in zip(terms.models, terms.fingerprints, strict=True):
        try:
            model = open_model(ModelSettings(**settings), models_dir)
        except ModelFolderError as error:
            raise JoinError(str(error)) from None
        if model.fingerprint != fingerprint:
            raise JoinError(
                f"{model.name} in {model.folder} differs from the model that the head serves "
                f"(fingerprint {model.fingerprint[:12]}, not {fingerprint[:12]}); fetch or copy it again"
            )
        models.append(model)
    return models
