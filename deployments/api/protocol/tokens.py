"""POST /tokenize and /detokenize, in vLLM's shapes."""

from typing import Annotated, Any

import msgspec

from deployments.api.protocol.chat_messages import ChatMessage
from deployments.api.protocol.common import Natural


class TokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /tokenize: a text (`prompt`), or a conversation (`messages`), which the chat template renders
    first. add_generation_prompt: whether the template opens an answer after it."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    add_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False
    add_generation_prompt: bool = True


class DetokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /detokenize. tokens: token ids."""

    model: str
    tokens: list[Natural]


class TokenizeResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token ids. token_strs: each as the vocabulary writes it, if the request sets return_token_strs."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """prompt: the text of the token ids, special ones included."""

    prompt: str


decode_tokenize = msgspec.json.Decoder(TokenizeRequest)
decode_detokenize = msgspec.json.Decoder(DetokenizeRequest)
