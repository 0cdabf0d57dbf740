"""The model cards' loop under some onnxruntime: `python ort_loop.py REQUEST.json`; see table.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import card_loop

request = json.loads(Path(sys.argv[1]).read_text())
for variant, options in request["variants"].items():
    try:
        tokens = [
            card_loop.main(request["folder"], options["file"], request["max_new_tokens"], prompt)
            for prompt in request["prompts"]
        ]
        print(json.dumps({"variant": variant, "tokens": tokens}), flush=True)
    except Exception as error:
        print(json.dumps({"variant": variant, "error": str(error)}), flush=True)
