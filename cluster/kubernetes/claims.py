"""What Kubernetes never lets shrink: the size of a claim."""

from typing import Any

import yaml

from cluster.kubernetes.sizes import KubernetesError

_KIND = "PersistentVolumeClaim"


def keep_size(claim: dict[str, Any], previous: str, *, chosen: bool) -> None:
    """Gives the claim the size of the same claim in `previous`, if that is larger.

    previous: YAML documents that were rendered before. chosen: the size is a setting, and not to be replaced without a
    word: raises KubernetesError.
    """
    requests = claim["spec"]["resources"]["requests"]
    for document in filter(None, yaml.safe_load_all(previous)):
        if document["kind"] != _KIND or document["metadata"]["name"] != claim["metadata"]["name"]:
            continue
        before = document["spec"]["resources"]["requests"]["storage"]
        if _gibibytes(before) <= _gibibytes(requests["storage"]):
            continue
        if chosen:
            raise KubernetesError(
                f"the claim {claim['metadata']['name']} was rendered with {before}, and no claim can shrink to "
                f"{requests['storage']}: raise kubernetes.storage_mb, or name a new claim (kubernetes.models_claim)"
            )
        requests["storage"] = before


def _gibibytes(text: str) -> int:
    """The size in a rendered file, which is always in Gi."""
    return int(text.removesuffix("Gi"))
