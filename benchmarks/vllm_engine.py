"""vLLM's engine at a model's shape with random INT8 weights, for `benchmarks.peer_vllm`. Runs in vLLM's environment.

argv[1]: the model's config.json. Each line of standard input is a load as JSON, {"streams", "prompt", "tokens"}, with
lengths in tokens; each line of output is the seconds that it took.
"""

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

_PROMPT_WORDS = 2000
_ROUNDED = {"num_bits": 8, "type": "int", "symmetric": True}
_LINEAR = {
    "targets": ["Linear"],
    "weights": {**_ROUNDED, "dynamic": False, "strategy": "channel", "observer": "mse"},
    "input_activations": {**_ROUNDED, "dynamic": True, "strategy": "token"},
    "output_activations": None,
}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": _LINEAR},
}
"""Activations are rounded by token, weights by output channel: what vLLM multiplies in INT8 on CPUs."""


def main() -> None:
    # What vLLM prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

    config = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "quantization_config": W8A8}))
        engine = LLM(
            model=folder,
            load_format="dummy",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=2048,
            max_num_seqs=32,
            max_num_batched_tokens=512,
            disable_log_stats=True,
        )
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            load = json.loads(line)
            prompts = [
                {"prompt_token_ids": [random.randrange(_PROMPT_WORDS) for _ in range(load["prompt"])]}
                for _ in range(load["streams"])
            ]
            sampling = SamplingParams(max_tokens=load["tokens"], ignore_eos=True, temperature=0, detokenize=False)
            began = time.perf_counter()
            engine.generate(prompts, sampling, use_tqdm=False)
            print(time.perf_counter() - began, file=answers, flush=True)


if __name__ == "__main__":
    main()
