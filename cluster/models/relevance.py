"""How a causal language model is asked whether a document answers a query: by its next word, yes or no.

Source: the model card of Qwen3-Reranker, whose makers trained it on exactly this text.
"""

from tokenizers import Tokenizer

BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def question(query: str, document: str) -> str:
    """What stands between BEFORE and AFTER."""
    return f"<Instruct>: {_INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"


def answer_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens of "yes" and "no". Raises ValueError for the tokenizer of a model that cannot have been trained so."""
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    if missing := [text for text in ("yes", "no", *_TOKENS) if tokenizer.token_to_id(text) is None]:
        raise ValueError(
            f"a language model ranks documents only if it is a Qwen3-Reranker; this one has no token {missing[0]!r}"
        )
    return yes, no
