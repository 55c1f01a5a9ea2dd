"""Model hubs: listing a repository and downloading its files, with each hub's official client.

Both clients resume interrupted downloads and retry when a connection drops.
"""

import contextlib
import glob
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.models.catalog import Hub

_WORKERS = 4

OnBytes = Callable[[str, int], None]
"""Called with a file's path and how many more of its bytes have arrived (negative: that many were dropped)."""


class HubError(Exception):
    """A hub refused the request or is unreachable; the message says what to do."""


class NotOnHub(HubError):
    """The hub has no such repository, revision or file, or hides it from this user."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. size: in bytes. sha256 or blob_id (Git's): hash of its content, if the hub lists one."""

    path: str
    size: int
    sha256: str = ""
    blob_id: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one revision (a commit, where the hub names it)."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]


class FileSource(Protocol):
    """What files are downloaded from."""

    endpoint: str

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        """Downloads the files into the folder, resuming what is there already. Raises HubError, OSError."""


class ModelHub(FileSource, Protocol):
    """A model hub."""

    name: Hub

    def listing(self, repository: str, revision: str | None) -> Listing:
        """The repository's files; revision None is the main branch. Raises NotOnHub, HubError."""


def open_hub(name: Hub) -> ModelHub:
    """The hub of that name. Its address and the user's token come from the variables that its own client reads."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # both clients draw their own progress bars
    return HuggingFace() if name == "huggingface" else ModelScope()


class HuggingFace:
    """The Hugging Face Hub, or the mirror at HF_ENDPOINT. Token: HF_TOKEN, or `hf auth login`."""

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
                sibling.rfilename,
                int(sibling.size or 0),
                sha256=sibling.lfs.sha256 if sibling.lfs else "",
                blob_id="" if sibling.lfs else sibling.blob_id or "",
            )
            for sibling in info.siblings or ()
        )
        return Listing(repository, info.sha or revision or "main", files)

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        def fetch(file: RemoteFile) -> None:
            self._api.hf_hub_download(
                listing.repository,
                file.path,
                revision=listing.revision,
                local_dir=folder,
                tqdm_class=_progress_class(file.path, on_bytes),
            )

        with self._errors(listing.repository), ThreadPoolExecutor(_WORKERS) as workers:
            futures = [workers.submit(fetch, file) for file in files]
            try:
                for future in futures:
                    future.result()
            finally:
                workers.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _errors(self, repository: str) -> Iterator[None]:
        import httpx
        from huggingface_hub import errors

        page = f"{self.endpoint}/{repository}"
        try:
            yield
        except errors.GatedRepoError:
            raise NotOnHub(
                f"{repository} is gated: accept its terms at {page}, then set HF_TOKEN to that account's token"
            ) from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
            raise NotOnHub(f"{page} does not exist, or is private (then set HF_TOKEN)") from None
        except errors.HFValidationError:
            raise NotOnHub(f"{repository!r} is not a valid repository name") from None
        except (errors.LocalEntryNotFoundError, httpx.TransportError) as error:
            raise HubError(_unreachable(self.endpoint, error)) from None
        except errors.HfHubHTTPError as error:
            raise HubError(f"{page}: HTTP {error.response.status_code}") from None


class ModelScope:
    """ModelScope, or the server at MODELSCOPE_ENDPOINT. Token: MODELSCOPE_API_TOKEN, or its client's login."""

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
            entries = self._api.list_repo_files(repository, "model", revision=revision)
        files = tuple(
            RemoteFile(entry.path, entry.size, sha256=entry.sha256 or "") for entry in entries if entry.type != "tree"
        )
        return Listing(repository, revision or "master", files)

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        from modelscope_hub import ProgressCallback

        class Reporter(ProgressCallback):
            def update(self, size: int) -> None:
                on_bytes(self.filename, size)

        with self._errors(listing.repository):
            self._api.download_repo(
                listing.repository,
                "model",
                revision=listing.revision,
                local_dir=folder,
                cache_dir=folder / ".cache",
                # The client lists the repository again and checks no path that it gets: only these very names match.
                allow_patterns=[glob.escape(file.path) for file in files],
                max_workers=_WORKERS,
                progress_callbacks=[Reporter],
            )

    @contextlib.contextmanager
    def _errors(self, repository: str) -> Iterator[None]:
        import requests
        from modelscope_hub import errors

        page = f"{self.endpoint}/models/{repository}"
        try:
            yield
        except errors.NotExistError:
            raise NotOnHub(f"{page} does not exist, or is private (then set MODELSCOPE_API_TOKEN)") from None
        except (errors.AuthenticationError, errors.PermissionDeniedError):
            raise NotOnHub(f"you may not read {page}: set MODELSCOPE_API_TOKEN to a token that may") from None
        except (errors.NetworkError, requests.ConnectionError, requests.Timeout) as error:
            raise HubError(_unreachable(self.endpoint, error)) from None
        except errors.FileDownloadError as error:
            path, cause = next(iter(error.failed_files.items()))
            if isinstance(cause, OSError) and cause.errno:
                raise cause from None
            raise HubError(f"{page}: {path}: {cause}") from None
        except errors.HubError as error:
            raise HubError(f"{page}: {error}") from None


def _progress_class(path: str, on_bytes: OnBytes) -> type:
    """A class that huggingface_hub accepts in place of its progress bar."""

    class Reporter:
        def __init__(self, *, initial: int = 0, total: int | None = None, **appearance: object) -> None:
            self.total, self.n = total, initial
            on_bytes(path, initial)

        def update(self, size: int) -> None:
            self.n += size
            on_bytes(path, size)

        def set_description(self, *arguments: object, **options: object) -> None:
            return

        refresh = close = set_description

        def __enter__(self) -> "Reporter":
            return self

        def __exit__(self, *exception: object) -> None:
            return

    return Reporter


def _unreachable(endpoint: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (
        f"cannot reach {endpoint} ({lines[0] if lines else type(error).__name__}); set HF_ENDPOINT to a mirror, "
        "use --source modelscope, or give a folder that you copied to this machine"
    )
