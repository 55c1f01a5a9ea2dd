"""Model hubs: what a repository holds, and its files brought into a folder. Each by its maker's own client.

Both clients take up a download where it broke off, and try again when a connection drops.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.models.catalog import Hub

_WORKERS = 4

OnBytes = Callable[[str, int], None]
"""Told of a file's path, and of how many of its bytes are now there more than before (fewer: negative)."""


class HubError(Exception):
    """A hub refused, or cannot be reached; the message says what to do."""


class NotOnHub(HubError):
    """The hub has no such repository, revision or file, or hides it from this user."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. sha256 of its content, or git's blob id of it, as far as the hub says."""

    path: str
    size: int
    sha256: str = ""
    blob_id: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one revision (a commit where the hub names it)."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]


class ModelHub(Protocol):
    """What Dray asks of a hub."""

    name: Hub
    endpoint: str

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Raises NotOnHub, HubError."""

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        """Brings the files into the folder, going on from what lies there. Raises HubError, OSError."""


def open_hub(name: Hub) -> ModelHub:
    """The hub of that name; its address and the user's token come from the variables that its own client reads."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # both clients draw bars of their own
    return HuggingFace() if name == "huggingface" else ModelScope()


class HuggingFace:
    """The Hugging Face Hub, or the mirror that HF_ENDPOINT names. The token: HF_TOKEN, or `hf auth login`."""

    name: Hub = "huggingface"

    def __init__(self) -> None:
        from huggingface_hub import HfApi, constants

        self.endpoint: str = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self.endpoint, library_name="dray")
        for noisy in ("huggingface_hub", "httpx"):
            logging.getLogger(noisy).setLevel(logging.ERROR)

    def listing(self, repository: str, revision: str | None) -> Listing:
        with self._errors(repository):
            info = self._api.model_info(repository, revision=revision, files_metadata=True)
        files = tuple(
            RemoteFile(
                one.rfilename,
                int(one.size or 0),
                sha256=one.lfs.sha256 if one.lfs else "",
                blob_id="" if one.lfs else one.blob_id or "",
            )
            for one in info.siblings or ()
        )
        return Listing(repository, info.sha or revision or "main", files)

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        def fetch(file: RemoteFile) -> None:
            self._api.hf_hub_download(
                listing.repository,
                file.path,
                revision=listing.revision,
                local_dir=folder,
                tqdm_class=_meter(file.path, on_bytes),
            )

        with self._errors(listing.repository), ThreadPoolExecutor(_WORKERS) as workers:
            futures = [workers.submit(fetch, file) for file in files]
            try:
                for future in futures:
                    future.result()
            finally:
                workers.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _errors(self, repository: str) -> Any:
        import httpx
        from huggingface_hub import errors

        page = f"{self.endpoint}/{repository}"
        try:
            yield
        except errors.GatedRepoError:
            raise NotOnHub(
                f"{repository} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
            ) from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
            raise NotOnHub(f"{page} does not exist (or is private: then set HF_TOKEN)") from None
        except errors.HFValidationError:
            raise NotOnHub(f"{repository!r} is no repository's name") from None
        except (errors.LocalEntryNotFoundError, httpx.TransportError) as error:
            raise HubError(_unreachable(self.endpoint, error)) from None
        except errors.HfHubHTTPError as error:
            raise HubError(f"{page}: HTTP {error.response.status_code}") from None


class ModelScope:
    """ModelScope, or the server that MODELSCOPE_ENDPOINT names. The token: MODELSCOPE_API_TOKEN, or its own login."""

    name: Hub = "modelscope"
    endpoint: str

    def __init__(self) -> None:
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig

        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
        self._api = HubApi(user_agent="dray")
        self.endpoint = str(HubConfig().endpoint)

    def listing(self, repository: str, revision: str | None) -> Listing:
        with self._errors(repository):
            found = self._api.list_repo_files(repository, "model", revision=revision)
        files = tuple(RemoteFile(one.path, one.size, sha256=one.sha256 or "") for one in found if one.type != "tree")
        return Listing(repository, revision or "master", files)

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        from modelscope_hub import ProgressCallback

        class Meter(ProgressCallback):
            def update(self, size: int) -> None:
                on_bytes(self.filename, size)

        with self._errors(listing.repository):
            self._api.download_repo(
                listing.repository,
                "model",
                revision=listing.revision,
                local_dir=folder,
                cache_dir=folder / ".cache",
                allow_patterns=[file.path for file in files],
                max_workers=_WORKERS,
                progress_callbacks=[Meter],
            )

    @contextlib.contextmanager
    def _errors(self, repository: str) -> Any:
        import requests
        from modelscope_hub import errors

        page = f"{self.endpoint}/models/{repository}"
        try:
            yield
        except errors.NotExistError:
            raise NotOnHub(f"{page} does not exist (or is private: then set MODELSCOPE_API_TOKEN)") from None
        except (errors.AuthenticationError, errors.PermissionDeniedError):
            raise NotOnHub(f"{page} is not open to you: set MODELSCOPE_API_TOKEN to a token that may read it") from None
        except (errors.NetworkError, requests.ConnectionError, requests.Timeout) as error:
            raise HubError(_unreachable(self.endpoint, error)) from None
        except errors.FileDownloadError as error:
            path, cause = next(iter(error.failed_files.items()))
            if isinstance(cause, OSError) and cause.errno:
                raise cause from None
            raise HubError(f"{page}: {path}: {cause}") from None
        except errors.HubError as error:
            raise HubError(f"{page}: {error}") from None


def _meter(path: str, on_bytes: OnBytes) -> type:
    """What huggingface_hub takes for a progress bar's class."""

    class Meter:
        def __init__(self, *, initial: int = 0, total: int | None = None, **look: object) -> None:
            self.total, self.n = total, initial
            on_bytes(path, initial)

        def update(self, size: int) -> None:
            self.n += size
            on_bytes(path, size)

        def set_description(self, *said: object, **more: object) -> None:
            return

        refresh = close = set_description

        def __enter__(self) -> "Meter":
            return self

        def __exit__(self, *how: object) -> None:
            return

    return Meter


def _unreachable(endpoint: str, error: Exception) -> str:
    said = str(error).strip().splitlines()
    return (
        f"cannot reach {endpoint} ({said[0] if said else type(error).__name__}); set HF_ENDPOINT to a mirror, "
        "take --source modelscope, or give a folder that you carried here"
    )
