"""The bundled model's tokenizer: byte-level BPE with single-digit tokens, and R1's special tokens and template."""

import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.phrasings import SYSTEM
from demo.problems import FAMILIES, make

# R1's spelling: the bars are U+FF5C and the spaces U+2581.
BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
THINK, END_THINK = "<think>", "</think>"
CONTEXT = 2048
_SIZE = 2048
_SAMPLES = 20_000

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages if message['role'] in ('system', 'developer') -%}
{{- message['content'] -}}
{%- endfor -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '%(user)s' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '%(assistant)s' + message['content'].split('</think>')[-1].lstrip() + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '%(assistant)s<think>\\n' -}}
{%- endif -%}
""".replace("%(user)s", USER).replace("%(assistant)s", ASSISTANT)


def build(folder: Path) -> None:
    """Trains the tokenizer on generated problems and writes it with its template to `folder`."""
    rng = random.Random(7)

    def corpus() -> list[str]:
        lines = []
        for _ in range(_SAMPLES):
            language = rng.choice(("zh", "en"))
            problem = make(rng, rng.choice(FAMILIES), language)  # type: ignore[arg-type]
            lines.append(f"{problem.question}\n{problem.thinking}\n{problem.answer}")
        return lines + [text for texts in SYSTEM.values() for text in texts] * 50

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Digits, operators, line ends and Chinese characters are split off; words keep their leading space.
            pre_tokenizers.Split(
                Regex("\\d|[+\\-×÷=*/<>≥;:,。、\uff0c\uff1a\uff1f\n]|\\p{Han}| ?[\\p{L}']+| ?[^\\s\\p{L}\\d]|\\s"),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in (BOS, EOS, USER, ASSISTANT)],
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # Not special tokens, so that decoding keeps them for the parser of the thinking.
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in (THINK, END_THINK)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
