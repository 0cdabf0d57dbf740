"""Every client on every variant of a model of each family: are the greedy tokens the same?

    make clients            # or: python tests/clients/table.py [--browser] [--only NAME]

Models are the bundled ones, and small random ones of other families; for a client that takes heads to fill the hidden
size LFM3 is a random one, whose heads do. A client gets a folder that lfm-convert wrote, with caches of the kind it can have, and a request: three conversations and their ids, the variants and how
each is asked for. It prints a JSON line a variant, with the new ids of each conversation or an error; to those of
Transformers.js it is an error if a prompt's logits are not the same each time, to the bit. fp32 is compared with the
checkpoint run by itself, another variant with what onnxruntime here generates from it.

A cell is `yes`, or how many of the tokens came before the first difference, or why the client did not run. Exit
code 1 unless every fp32 cell is `yes` and every client ran every variant; browsers are excused from float16, which
SwiftShader does not have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lfm_convert.convert import bundled, convert
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.source.chat import render_chats

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support.bpe import MAX_TOKENS  # noqa: E402
from support.checkpoints import lfm3_config, make_checkpoint  # noqa: E402
from support.family_configs import PUBLISHED, small  # noqa: E402
from support.family_models import make_model  # noqa: E402

INSTALLED = HERE.parents[1] / ".clients"

# Quant -> graph file, and how Transformers.js is asked for it.
VARIANTS = {
    "fp32": {"file": "model.onnx", "dtype": "fp32"},
    "fp16": {"file": "model_fp16.onnx", "dtype": "fp16"},
    "q8": {"file": "model_quantized.onnx", "dtype": "q8"},
    "q4": {"file": "model_q4.onnx", "dtype": "q4"},
    "q4_mixed": {"file": "model_mixed_q4.onnx", "dtype": "q4", "model_file_name": "model_mixed"},
    "q4f16": {"file": "model_q4f16.onnx", "dtype": "q4f16"},
}
BUNDLED = ("dense", "moe", "lfm3")
# Families -> the published config whose small kin is run.
OTHERS = {PUBLISHED[name]["model_type"]: name for name in (
    "Qwen3-0.6B", "Qwen3-30B-A3B", "Llama-3.2-1B", "SmolLM3-3B", "Granite-3.3-2B", "Granite-3.1-1B-A400M",
    "Granite-4.0-1B", "gemma-3-270m", "Phi-4-mini",
)}  # fmt: skip
MODELS = (*BUNDLED, *OTHERS)
CONVERSATIONS = (
    ({"role": "user", "content": "What is the capital of France?"},),
    ({"role": "user", "content": "Tell me about the sea."},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three colours."}),
)
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Client:
    """`command` is completed by the request's path; `folder` must be installed; `has_half`: float16 is expected to run.

    `caches` are those of sliding windows that it can have; `has_free_heads`: heads need not fill the hidden size.
    """

    name: str
    folder: str | None
    command: tuple[str, ...]
    has_half: bool = True
    caches: str = "window"
    has_free_heads: bool = True

    def run(self, request: dict) -> dict[str, list[list[int]] | str]:
        """New ids of each variant, or the error."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(request, file)
            file.flush()
            done = subprocess.run([*self.command, file.name], capture_output=True, text=True, cwd=HERE.parents[1])
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"variant"')]
        found = {line["variant"]: line.get("tokens") or line["error"] for line in lines}
        return {variant: found.get(variant, done.stderr[-200:] or "no answer") for variant in request["variants"]}


def _python(name: str, script: str, **options: str) -> Client:
    return Client(name, name, (str(INSTALLED / name / "bin" / "python"), str(HERE / script)), **options)


def _node(name: str, **options: bool) -> Client:
    return Client(name, name, ("node", str(HERE / "transformersjs.mjs"), str(INSTALLED / name)), **options)


def _browser(device: str) -> Client:
    script, tfjs = str(HERE / "browser.mjs"), str(INSTALLED / "tfjs-4.3.1")
    return Client(
        f"chromium-{device}", "browser", ("node", script, tfjs, device, str(INSTALLED / "browser")), has_half=device == "wasm"
    )  # fmt: skip


HOME = Client("onnxruntime here", None, (sys.executable, str(HERE / "ort_loop.py")))
CLIENTS = (
    HOME,
    _python("ort-1.30.0", "ort_loop.py"),
    _python("ort-1.24.3", "ort_loop.py"),
    _python("genai-0.18.0", "genai_loop.py", caches="whole"),
    _node("tfjs-4.3.1"),
    _node("tfjs-4.0.1", has_free_heads=False),
)
BROWSERS = (_browser("wasm"), _browser("webgpu"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", action="store_true", help="Chromium too, with wasm and WebGPU.")
    parser.add_argument("--only", help="Clients whose name holds this.")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    arguments = parser.parse_args()
    clients = [c for c in (*CLIENTS, *(BROWSERS if arguments.browser else ())) if (arguments.only or "") in c.name]
    good = True
    print("| client | model | " + " | ".join(VARIANTS) + " |\n|" + "---|" * (len(VARIANTS) + 2))
    for kind in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            needed = {(client.caches, client.has_free_heads) for client in clients}
            prepared = {each: _prepare(kind, Path(scratch), *each) for each in needed}
            for client in clients:
                good &= _row(client, kind, *prepared[client.caches, client.has_free_heads])
    return 0 if good else 1


def _prepare(kind: str, scratch: Path, caches: str, has_free_heads: bool) -> tuple[dict, dict[str, list[list[int]]]]:
    """A converted model, the request about it, and the tokens each variant should give."""
    scratch = Path(tempfile.mkdtemp(dir=scratch))
    folder = scratch / "model"
    graph = open_graph(_checkpoint(kind, scratch / "checkpoint", has_free_heads=has_free_heads))
    convert(graph, target="onnx", quant="all", out=folder, options={"onnx_caches": caches}, validate_after=False)
    texts = render_chats(graph.assets.chat_template, CONVERSATIONS, special_tokens=graph.assets.special_tokens)
    prompts = [list(graph.tokenizer.encode(text, special=False)) for text in texts]
    request = {
        "folder": str(folder),
        "conversations": CONVERSATIONS,
        "prompts": prompts,
        "max_new_tokens": MAX_NEW_TOKENS,
        "variants": VARIANTS,
    }
    forward, stop = Forward(graph), graph.stop_ids
    reference = [list(forward.generate(p, max_new_tokens=MAX_NEW_TOKENS, stop=stop)) for p in prompts]
    return request, {**HOME.run(request), "fp32": reference}


def _checkpoint(kind: str, folder: Path, *, has_free_heads: bool) -> Path:
    """A model of a kind; heads of LFM3 fill the hidden size if they must, as those of LFM3-1.7B do."""
    if kind in OTHERS:
        return make_model(folder, small(OTHERS[kind], vocab_size=MAX_TOKENS))
    if kind == "lfm3" and not has_free_heads:
        return make_checkpoint(folder, lfm3_config(head_dim=32), dtype="float32")
    return bundled.path(kind)


def _row(client: Client, kind: str, request: dict, expected: dict[str, list[list[int]]]) -> bool:
    """Prints a row; whether it is as it must be."""
    if client.folder and not (INSTALLED / client.folder).exists():
        print(f"| {client.name} | {kind} |" + " not installed |" * len(VARIANTS))
        return False
    found = client.run(request)
    cells = {variant: _compare(found[variant], expected[variant]) for variant in VARIANTS}
    print(f"| {client.name} | {kind} | " + " | ".join(cells.values()) + " |", flush=True)
    ran = all(isinstance(found[v], list) or (not client.has_half and v.endswith("16")) for v in VARIANTS)
    return ran and cells["fp32"] == "yes"


def _compare(found: list[list[int]] | str, expected: list[list[int]]) -> str:
    if isinstance(found, str):
        return found.splitlines()[-1][:80].replace("|", "/")
    if found == expected:
        return "yes"
    total = sum(map(len, expected))
    same = sum(
        next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))
        for x, y in zip(found, expected, strict=True)
    )
    return f"{same} of {total}"


if __name__ == "__main__":
    sys.exit(main())
