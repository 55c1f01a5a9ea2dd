"""Prints what Dray understood of a model as JSON: a list of CheckedItem. argv[1]: the model's folder."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cluster.models.check import CheckedItem
from cluster.models.folder import ModelFolderError, open_model
from cluster.settings import ModelSettings
from deployments.checking.model import ModelCheck


def check(folder: Path) -> Iterator[CheckedItem]:
    """The lines of the table, the most basic first. A folder that cannot be opened has only one."""
    try:
        model = open_model(ModelSettings(source=str(folder.absolute())), folder)
        checked = ModelCheck(model)
    except ModelFolderError as error:
        yield CheckedItem("files", str(folder), str(error))
        return
    yield CheckedItem("files", f"complete; {model.context_tokens} tokens of context")
    parts: tuple[Callable[[], CheckedItem], ...] = (
        checked.tokenizer,
        checked.special_tokens,
        checked.template,
        checked.marks,
        checked.thinking,
        checked.tools,
        checked.stop_tokens,
        checked.round_trip,
    )
    for part in parts:
        yield part()


def main() -> None:
    sys.stdout.buffer.write(msgspec.json.encode(list(check(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
