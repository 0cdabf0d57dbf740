"""Greedy generation as LFM2's ONNX model cards show it, from a folder alone.

    python tests/support/card_loop.py FOLDER FILE MAX_NEW_TOKENS ID [ID …]

Prints the new ids. Nothing of lfm-convert is imported: this is what users run.
"""

import sys

import numpy as np
import onnxruntime
from transformers import AutoConfig


def main(folder: str, file: str, max_new_tokens: int, prompt: list[int]) -> list[int]:
    eos_token_id = AutoConfig.from_pretrained(folder).eos_token_id
    session = onnxruntime.InferenceSession(f"{folder}/onnx/{file}")
    batch = 1
    cache = {}
    for entry in session.get_inputs():
        dtype = np.float32 if entry.type == "tensor(float)" else np.float16
        if entry.name.startswith("past_key_values"):
            cache[entry.name] = np.zeros([batch, entry.shape[1], 0, entry.shape[3]], dtype=dtype)
        if entry.name.startswith("past_conv"):
            cache[entry.name] = np.zeros([batch, entry.shape[1], entry.shape[2]], dtype=dtype)
    input_ids = np.array([prompt], dtype=np.int64)
    attention_mask = np.ones_like(input_ids)
    num_logits_to_keep = np.array(1, dtype=np.int64)
    generated: list[int] = []
    for _ in range(max_new_tokens):
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask, "num_logits_to_keep": num_logits_to_keep}
        logits, *present = session.run(None, {**feeds, **cache})
        input_ids = logits[:, -1].argmax(-1, keepdims=True)
        attention_mask = np.concatenate([attention_mask, np.ones_like(input_ids)], axis=-1)
        for position, name in enumerate(cache):
            cache[name] = present[position]
        generated.append(int(input_ids[0, 0]))
        if generated[-1] == eos_token_id:
            break
    return generated


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(i) for i in sys.argv[4:]]))
