"""A model's tokenizer and chat templates, as the files of its folder have them.

transformers would build the tokenizer of the class that tokenizer_config.json names, which is often not the one that
tokenizer.json describes: the R1 distills name Llama's class and have the tokens of Qwen or of Llama 3.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from cluster.models.folder import ModelFolderError
from cluster.models.tokenizer_cost import MAX_WORD, check_cost

_MAX_TOKENIZER_BYTES = 64 << 20
"""The largest of a known model is Gemma 3's, 33 MB. Loading takes a second for each 10 MB, and memory in proportion."""
_MAX_BYTES = 8 << 20
"""Of each other file. Gemma 3's tokenizer_config.json has 1.2 MB."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_DEFAULT, _TOOL_USE = "default", "tool_use"


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of tokenizer.json, which neither truncates nor pads, and whose time is bounded.

    Raises ModelFolderError.
    """
    file = folder / "tokenizer.json"
    try:
        size = file.stat().st_size
        if size > _MAX_TOKENIZER_BYTES:
            raise ModelFolderError(f"{file} has {size} bytes; at most {_MAX_TOKENIZER_BYTES} are read")
        content = file.read_bytes()
        check_cost(content)
        tokenizer = Tokenizer.from_buffer(content)
        if isinstance(tokenizer.model, Unigram) and max(map(len, tokenizer.get_vocab(False))) > MAX_WORD:
            raise ModelFolderError(f"{file} has a token of more than {MAX_WORD} characters")
    except ModelFolderError:
        raise
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more exact
        raise ModelFolderError(f"{file} cannot be used as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def keep_tokenizer(source: Path, target: Path) -> None:
    """Gives `target` the tokenizer of `source` as its makers wrote it; an exporter writes what transformers made of it.

    Without a tokenizer.json, as older models are, there is nothing to keep.
    """
    if (source / "tokenizer.json").is_file():
        for name in _FILES:
            if (source / name).is_file():
                shutil.copy(source / name, target / name)


class TokenizerConfig:
    """What the files beside tokenizer.json say.

    special_tokens: texts by their names for chat templates, such as bos_token. tokenizer_class: the declared one, which
    nothing depends on; it may be empty.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ModelFolderError for a file that cannot be read."""
        try:
            config = _object(folder / "tokenizer_config.json")
            special = folder / "special_tokens_map.json"
            declared = (_object(special) if special.is_file() else {}) | config
            self._templates = _templates(folder, config.get("chat_template"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelFolderError(f"{folder / 'tokenizer_config.json'} cannot be used: {error}") from None
        self.tokenizer_class = str(config.get("tokenizer_class", ""))
        self.special_tokens = {
            name: text for name, value in declared.items() if name.endswith("_token") and (text := _text(value))
        }

    @property
    def templates(self) -> tuple[str, ...]:
        """The sources of all chat templates."""
        return tuple(self._templates.values())

    def template(self, *, tools: bool) -> str:
        """The chat template's source; some models have another one for tools. Empty: the model has none."""
        if tools and _TOOL_USE in self._templates:
            return self._templates[_TOOL_USE]
        return self._templates.get(_DEFAULT, "")


def _templates(folder: Path, configured: object) -> dict[str, str]:
    """Templates by their names: of chat_template.jinja, else those of tokenizer_config.json."""
    files = {_DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _read(file) for name, file in files.items() if file.is_file()}
    if found:
        return found
    if isinstance(configured, str):
        return {_DEFAULT: configured}
    if isinstance(configured, list):
        return {str(entry["name"]): str(entry["template"]) for entry in configured if _is_named_template(entry)}
    return {}


def _is_named_template(entry: object) -> bool:
    return isinstance(entry, dict) and {"name", "template"} <= entry.keys()


def _object(file: Path) -> dict[str, Any]:
    value = json.loads(_read(file))
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return value


def _read(file: Path) -> str:
    with file.open("rb") as content:
        text = content.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{file.name} has more than {_MAX_BYTES} bytes")
    return text.decode()


def _text(value: Any) -> str:
    """A special token's text, which is written as it is or with its properties."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
