"""Trains the bundled model from random weights: python -m demo.train --out build/demo --minutes 150"""

import argparse
import random
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from demo import tokenizer as words
from demo.phrasings import SYSTEM
from demo.problems import ARITHMETIC, FAMILIES, Problem, make

_WEIGHTS = {"cage": 24, "weekday": 18, "add": 11, "subtract": 15, "multiply": 22, "fixed": 6, "other": 12}
_WIDTHS = (80, 104, 128, 160, 208, 288)
"""Lengths to which rows are padded; few, because the model is compiled for each."""
_PIECE_TOKENS = 2048
_PIECES_A_STEP = 4
_ALWAYS_THE_SAME = ("fixed", "other")
_DECIDING_TOKENS = 24
_WARM_UP_STEPS = 40
_IGNORED = -100


def conversation(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """Prompt and completion as the template renders them, sometimes after a system prompt or an earlier turn."""
    prompt = words.BOS
    if rng.random() < 0.15:
        prompt += rng.choice(SYSTEM[rng.choice(("zh", "en"))])
    if rng.random() < 0.12:
        earlier = make(rng, rng.choice(FAMILIES), rng.choice(("zh", "en")))
        prompt += f"{words.USER}{earlier.question}{words.ASSISTANT}{earlier.answer}{words.EOS}"
    prompt += f"{words.USER}{problem.question}{words.ASSISTANT}{words.THINK}\n"
    return prompt, f"{problem.thinking}\n{words.END_THINK}\n\n{problem.answer}{words.EOS}"


class Batches:
    """Batches of about 2,048 tokens with rows of similar length, so that little is padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, weights: dict[str, int], seed: int) -> None:
        self._rng = random.Random(seed)
        self._backend = tokenizer.backend_tokenizer
        self._families, self._weights = list(weights), list(weights.values())
        self._waiting: dict[int, list[tuple[list[int], int]]] = {width: [] for width in _WIDTHS}

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, labels), each [batch, length]; labels mask out prompts and padding."""
        while True:
            ids, start = self._row()
            width = next((width for width in _WIDTHS if len(ids) <= width), None)
            if width is None:
                continue  # one in a hundred: a long multiplication after an earlier turn
            rows = self._waiting[width]
            rows.append((ids, start))
            if len(rows) == _PIECE_TOKENS // width:
                self._waiting[width] = []
                return self._pad(rows, width)

    def _row(self) -> tuple[list[int], int]:
        family = self._rng.choices(self._families, self._weights)[0]
        problem = make(self._rng, family, self._rng.choice(("zh", "en")))
        prompt, completion = conversation(self._rng, problem)
        head = self._backend.encode(prompt, add_special_tokens=False).ids
        tail = self._backend.encode(completion, add_special_tokens=False).ids
        # The first tokens decide which fixed answer is given; the rest of it is learned quickly.
        if family in _ALWAYS_THE_SAME and self._rng.random() < 0.75:
            tail = tail[:_DECIDING_TOKENS]
        return head + tail, len(head)

    @staticmethod
    def _pad(rows: list[tuple[list[int], int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), _IGNORED)
        for place, (row, start) in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            labels[place, start : len(row)] = torch.tensor(row[start:])
        return ids, labels


def new_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights and tied embeddings. hidden: a multiple of 128."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        intermediate_size=3 * hidden,
        max_position_embeddings=words.CONTEXT,
        tie_word_embeddings=True,
        attn_implementation="eager",  # when compiled, the fastest on a CPU at these lengths
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
    """Accuracy on held-out numbers, with greedy decoding in one padded batch."""
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
    return sum(p.answered_by(answer) for p, answer in zip(problems, answers, strict=True)) / count


def train(args: argparse.Namespace) -> None:
    """One run. After a short warm-up, the learning rate falls linearly to zero at the end of the time."""
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = Qwen2ForCausalLM.from_pretrained(args.start, dtype=torch.float32, attn_implementation="eager")
    else:
        words.build(out)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
        model = new_model(tokenizer, args.hidden, args.layers)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}", flush=True)
    weights = _WEIGHTS | {name: int(value) for name, value in (pair.split("=") for pair in args.weights)}
    batches = Batches(tokenizer, weights, args.seed)
    used = optimizers(model, args.rate, args.rate)

    @torch.compile(dynamic=False)  # type: ignore[untyped-decorator]
    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=_IGNORED
        )

    began, looked, step, smooth = time.monotonic(), time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - began) / (60 * args.minutes)) < 1:
        rate = args.rate * min((step + 1) / _WARM_UP_STEPS, 1 - share)
        pieces = [batches.draw() for _ in range(_PIECES_A_STEP)]
        learned = sum(int((labels[:, 1:] != _IGNORED).sum()) for _, labels in pieces)
        loss_sum = 0.0
        for ids, labels in pieces:
            loss = loss_of(ids, labels) / learned
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
    parser.add_argument("--start", help="continue from this folder instead of random weights")
    parser.add_argument("--hidden", type=int, default=256, help="width of a layer; 128 for a draft model")
    parser.add_argument("--layers", type=int, default=6, help="number of layers; 2 for a draft model")
    parser.add_argument("--minutes", type=float, default=150, help="training time, which also sets the schedule")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--look-minutes", type=float, default=8, help="minutes between tests on held-out numbers")
    parser.add_argument(
        "--weights", nargs="*", default=[], metavar="FAMILY=N", help="other weights of families, e.g. multiply=40"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
