"""POST /tokenize and /detokenize: what a model's tokenizer makes of a text, in vLLM's shapes."""

from typing import Annotated, Any

import msgspec

from deployments.api.protocol.chat import ChatMessage


class TokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text (`prompt`), or a conversation (`messages`) that the chat template renders first."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    add_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token ids."""

    model: str
    tokens: list[Annotated[int, msgspec.Meta(ge=0)]]


class TokenizeResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token ids. token_strs: the text of each, where it was asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """The text of token ids, special ones with theirs."""

    prompt: str


decode_tokenize = msgspec.json.Decoder(TokenizeRequest)
decode_detokenize = msgspec.json.Decoder(DetokenizeRequest)
