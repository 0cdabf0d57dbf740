"""vLLM on the CPU: greedy text of prompts of ids. A JSON request on the command line; a JSON line of tokens, or of an error.

    python vllm_loop.py REQUEST

Its rotation is wrong for queries and keys of three axes, as LFM2's are, where all custom operators are on, as they are on
the CPU without compilation (vLLM 0.32 and 0.33): they are turned off.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for variant, folder in request["variants"].items():
        try:
            print(json.dumps({"variant": variant, **_run(folder, request)}), flush=True)
        except Exception as error:  # the library raises its own kinds
            print(json.dumps({"variant": variant, "error": f"{type(error).__name__}: {error}"}), flush=True)


def _run(folder: str, request: dict) -> dict:
    """New ids of each prompt, and by how much each led the second best, in nats."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    model = LLM(
        folder,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        compilation_config={"custom_ops": ["none"]},
        disable_log_stats=True,
    )
    settings = SamplingParams(temperature=0, max_tokens=request["max_new_tokens"], ignore_eos=True, logprobs=2)
    outputs = model.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], settings)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    leads = [[_lead(step) for step in output.outputs[0].logprobs] for output in outputs]
    return {"tokens": tokens, "leads": leads}


def _lead(step: dict) -> float:
    first, second = sorted((each.logprob for each in step.values()), reverse=True)[:2]
    return first - second


if __name__ == "__main__":
    main()
