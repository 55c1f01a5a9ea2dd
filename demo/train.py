"""Trains the bundled model from random weights: python -m demo.train --out build/demo --minutes 65"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from demo import tokenizer as words
from demo.phrasings import SYSTEM
from demo.problems import ARITHMETIC, FAMILIES, Problem, make

_WEIGHTS = {"cage": 26, "weekday": 18, "add": 10, "subtract": 14, "multiply": 18, "fixed": 5, "other": 9}
_TOKENS_A_STEP = 8000
_PIECES = 4
_WARM_UP_STEPS = 40
_IGNORED = -100


def conversation(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """Prompt and completion as the template renders them; now and then behind a system prompt or an earlier turn."""
    prompt = words.BOS
    if rng.random() < 0.15:
        prompt += rng.choice(SYSTEM[rng.choice(("zh", "en"))])
    if rng.random() < 0.12:
        earlier = make(rng, rng.choice(FAMILIES), rng.choice(("zh", "en")))
        prompt += f"{words.USER}{earlier.question}{words.ASSISTANT}{earlier.answer}{words.EOS}"
    prompt += f"{words.USER}{problem.question}{words.ASSISTANT}{words.THINK}\n"
    return prompt, f"{problem.thinking}\n{words.END_THINK}\n\n{problem.answer}{words.EOS}"


class Batches:
    """Draws steps of about 8,000 tokens, cut into pieces of like length so that little is padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, weights: dict[str, int], seed: int) -> None:
        self._rng = random.Random(seed)
        self._backend = tokenizer.backend_tokenizer
        self._families, self._weights = list(weights), list(weights.values())

    def draw(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(ids, labels) pieces, each [batch, length]; prompts and padding are not learned."""
        rows: list[tuple[list[int], int]] = []
        total = 0
        while total < _TOKENS_A_STEP:
            family = self._rng.choices(self._families, self._weights)[0]
            problem = make(self._rng, family, self._rng.choice(("zh", "en")))
            prompt, completion = conversation(self._rng, problem)
            head = self._backend.encode(prompt, add_special_tokens=False).ids
            tail = self._backend.encode(completion, add_special_tokens=False).ids
            rows.append((head + tail, len(head)))
            total += len(head) + len(tail)
        rows.sort(key=lambda row: len(row[0]))
        size = math.ceil(len(rows) / _PIECES)
        return [self._pad(rows[start : start + size]) for start in range(0, len(rows), size)]

    @staticmethod
    def _pad(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), _IGNORED)
        for place, (row, start) in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            labels[place, start : len(row)] = torch.tensor(row[start:])
        return ids, labels


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights: 5.2 M parameters, input and output embeddings shared."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=768,
        max_position_embeddings=words.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    return model


def optimizers(model: Qwen2ForCausalLM, matrix_rate: float, other_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases."""
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    kept = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in kept]
    return [
        torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()  # type: ignore[untyped-decorator]
def right(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, family: str, count: int, seed: int) -> float:
    """Share of held-out numbers answered right, by greedy decoding in one padded batch."""
    rng = random.Random(seed)
    problems = [make(rng, family, rng.choice(("zh", "en")), "numbers") for _ in range(count)]
    prompts = [f"{words.BOS}{words.USER}{p.question}{words.ASSISTANT}{words.THINK}\n" for p in problems]
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        made = model.generate(**batch, max_new_tokens=260, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    model.train()
    texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [text.split(words.END_THINK)[-1] for text in texts]
    return sum(all(part in answer for part in p.expect) for p, answer in zip(problems, answers, strict=True)) / count


def train(args: argparse.Namespace) -> None:
    """One run: a short warm-up, then the rate falls linearly to nothing at the end of the time."""
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = Qwen2ForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    else:
        words.build(out)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
        model = new_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}", flush=True)
    weights = _WEIGHTS | {name: int(value) for name, value in (pair.split("=") for pair in args.weights)}
    batches = Batches(tokenizer, weights, args.seed)
    used = optimizers(model, args.rate, args.rate)
    began, looked, step, smooth = time.monotonic(), time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - began) / (60 * args.minutes)) < 1:
        rate = args.rate * min((step + 1) / _WARM_UP_STEPS, 1 - share)
        pieces = batches.draw()
        learned = sum(int((labels[:, 1:] != _IGNORED).sum()) for _, labels in pieces)
        loss_sum = 0.0
        for ids, labels in pieces:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.model(ids).last_hidden_state[:, :-1]
                wanted = labels[:, 1:] != _IGNORED
                logits = model.lm_head(hidden[wanted])
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum") / learned
            loss.backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in used:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        smooth = loss_sum if step == 1 else 0.98 * smooth + 0.02 * loss_sum
        if step % 25 == 0:
            spent = time.monotonic() - began
            print(
                f"step {step} loss {smooth:.4f} rate {rate:.5f} {spent / step:.2f} s/step {share:.0%}",
                flush=True,
            )
        if time.monotonic() - looked > 60 * args.look_minutes:
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
            scores = {family: right(model, tokenizer, family, 48, seed=step) for family in ARITHMETIC}
            print(
                "right on held-out numbers:",
                {name: f"{score:.0%}" for name, score in scores.items()},
                flush=True,
            )
            looked = time.monotonic()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="build/demo", help="folder for the trained model")
    parser.add_argument("--start", help="go on from this folder instead of random weights")
    parser.add_argument("--minutes", type=float, default=65, help="how long to train; the schedule ends with it")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--look-minutes", type=float, default=8, help="minutes between looks at held-out numbers")
    parser.add_argument("--weights", nargs="*", default=[], metavar="FAMILY=N", help="changed shares, e.g. multiply=40")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
