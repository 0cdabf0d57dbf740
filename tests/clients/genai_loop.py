"""Greedy generation in onnxruntime-genai from the folder alone: `python genai_loop.py REQUEST.json`; see table.py."""

import json
import sys
from pathlib import Path

import onnxruntime_genai


def generate(folder: str, file: str, prompt: list[int], max_new_tokens: int) -> list[int]:
    config = onnxruntime_genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"filename": f"onnx/{file}"}}}))
    model = onnxruntime_genai.Model(config)
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + max_new_tokens)
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(prompt)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


request = json.loads(Path(sys.argv[1]).read_text())
for variant, options in request["variants"].items():
    try:
        tokens = [
            generate(request["folder"], options["file"], prompt, request["max_new_tokens"])
            for prompt in request["prompts"]
        ]
        print(json.dumps({"variant": variant, "tokens": tokens}), flush=True)
    except Exception as error:
        print(json.dumps({"variant": variant, "error": str(error)}), flush=True)
