"""Checks a model's tokenizer, chat template and stop tokens against each other."""

import json
import re

from cluster.models.check import CheckedItem
from cluster.models.folder import ModelFolderError, ServedModel
from cluster.models.tokenizer_files import TokenizerConfig
from deployments.common.errors import ApiError
from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.model import stop_token_ids
from deployments.generation.control_tokens import THINK
from deployments.generation.prompts import PromptRenderer

_TEXTS = (
    "一个笼子里有鸡和兔子共35只,脚共94只。",
    "👩‍👩‍👧 🏳️‍🌈 👍🏽",
    "def f(x):\n\treturn {'a': x ** 2}  # é\n",
    "Hello, world!",
)
_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?(?:think|tool_call|tool_response)>|</?s>|\[/?INST\]")
"""What templates write like control tokens."""
_QUESTION, _ANSWER = Message("user", "dray-question"), Message("assistant", "dray-answer")


class ModelCheck:
    """One model. Each method makes a line of the table."""

    def __init__(self, model: ServedModel) -> None:
        """Raises ModelFolderError for a tokenizer that cannot be read."""
        self._model = model
        self._prompts = PromptRenderer(model)
        self._config = TokenizerConfig(model.folder)
        self._tokenizer = self._prompts.vocabulary.tokenizer
        try:
            self._stop_ids = sorted(stop_token_ids(model.folder))
        except (OSError, ValueError, TypeError) as error:
            raise ModelFolderError(f"the stop tokens of {model.folder} cannot be read: {error}") from None

    def tokenizer(self) -> CheckedItem:
        kind = type(self._tokenizer.model).__name__
        found = f"{kind}, {self._prompts.vocabulary.size} tokens"
        if self._config.tokenizer_class:
            found += f"; declared as {self._config.tokenizer_class}, which nothing depends on"
        config = json.loads((self._model.folder / "config.json").read_bytes())
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        rows, problem = config.get("vocab_size"), ""
        if isinstance(rows, int) and largest >= rows:
            problem = (
                f"the token {largest} is beyond the model's {rows} (config.json); "
                "the tokenizer is another model's: get tokenizer.json from where the weights are from"
            )
        return CheckedItem("tokenizer", found, problem)

    def special_tokens(self) -> CheckedItem:
        special = self._config.special_tokens
        unknown = sorted(name for name, text in special.items() if self._tokenizer.token_to_id(text) is None)
        found = ", ".join(f"{name} {text}" for name, text in sorted(special.items())) or "none named"
        problem = f"{', '.join(unknown)}: not in tokenizer.json; correct tokenizer_config.json" if unknown else ""
        return CheckedItem("special tokens", found, problem)

    def template(self) -> CheckedItem:
        source, features = self._config.template(tools=False), self._prompts.features
        if not source:
            return CheckedItem(
                "chat template",
                "none",
                "only /v1/completions can be used; for conversations, put its makers' template into "
                "chat_template.jinja",
            )
        if features is None:
            return CheckedItem("chat template", f"{len(source)} characters", self._refusal())
        systems = "system messages" if features.several_systems else "one system message (several are joined)"
        found = (
            f"{len(source)} characters; {systems if features.system else 'no system messages (the question has them)'}"
        )
        return CheckedItem("chat template", found)

    def marks(self) -> CheckedItem:
        source = "".join(self._config.templates)
        written = sorted(set(_MARK.findall(source)) | {text for text in self._prompts.control.texts if text in source})
        control = [text for text in written if text in self._prompts.control.ids]
        found = ", ".join(control) or "none"
        if plain := [text for text in written if text not in self._prompts.control.ids]:
            found += f"; written as ordinary text, which clients can write too: {', '.join(plain)}"
        return CheckedItem("control tokens", found)

    def thinking(self) -> CheckedItem:
        source, thinks = "".join(self._config.templates), self._prompts.vocabulary.thinks
        try:
            opened = bool(source) and self._prompts.render(_asked(_QUESTION)).starts_in_thinking
        except ApiError:
            opened = False
        if opened and not thinks:
            return CheckedItem(
                "thinking",
                f"the template opens {THINK}",
                f"{THINK} and </think> are no tokens of tokenizer.json, so the thinking would never end; "
                "use a template without it",
            )
        if not thinks:
            return CheckedItem("thinking", "none")
        switch = ", switched by enable_thinking" if "enable_thinking" in source else ""
        return CheckedItem("thinking", f"opened by {'the template' if opened else 'the model itself'}{switch}")

    def tools(self) -> CheckedItem:
        features, name = self._prompts.features, self._prompts.tool_format.name
        if features is None:
            return CheckedItem("tools", f"{name} format, in the system prompt")
        shown = "shown by the template" if features.tools else "described in the system prompt"
        calls = "by the template" if features.calls else "as text"
        results = "by the template" if features.results else "as a user's message"
        return CheckedItem("tools", f"{name} format, {shown}; earlier calls {calls}, results {results}")

    def stop_tokens(self) -> CheckedItem:
        names = [f"{token} {self._tokenizer.id_to_token(token) or '?'}" for token in self._stop_ids]
        found, problem = ", ".join(names) or "none", ""
        end = self._end_of_answer()
        if not self._stop_ids:
            problem = "no answer would end; name eos_token_id in generation_config.json"
        elif unknown := [token for token in self._stop_ids if self._tokenizer.id_to_token(token) is None]:
            problem = f"{unknown[0]} is no token; correct eos_token_id in generation_config.json"
        elif end is not None and end not in self._stop_ids:
            problem = (
                f"the template ends answers with {end} {self._tokenizer.id_to_token(end)}, which is none of them; "
                "add it to eos_token_id in generation_config.json"
            )
        return CheckedItem("stop tokens", found, problem)

    def round_trip(self) -> CheckedItem:
        lost = []
        for text in _TEXTS:
            if (back := self._prompts.decode(self._prompts.encode(text), special=True)) != text:
                lost.append(f"{text!r} comes back as {back!r}")
        if lost:
            return CheckedItem(
                "round trip", f"{len(lost)} of {len(_TEXTS)} texts are changed", f"{lost[0]}; is tokenizer.json whole?"
            )
        return CheckedItem("round trip", "Chinese, emoji, code and English come back as they were")

    def _end_of_answer(self) -> int | None:
        """The control token that the template writes behind an answer, as models learn to write it."""
        try:
            prompt = self._prompts.render(_asked(_QUESTION, _ANSWER, _QUESTION))
        except ApiError:
            return None
        control, words = self._prompts.control.token_ids, list[int]()
        for token in prompt.ids:
            if token not in control:
                words.append(token)
            elif self._prompts.decode(words).rstrip().endswith(_ANSWER.content):
                return token
            else:
                words = []
        return None

    def _refusal(self) -> str:
        """Why the template cannot be used."""
        try:
            self._prompts.text(_asked(_QUESTION))
        except ApiError as error:
            return f"{error.body.error.message} Get the template again from its makers"
        return "it does not show what the user says; get the template again from its makers"


def _asked(*messages: Message) -> GenerationRequest:
    return GenerationRequest(messages, Sampling(1))
