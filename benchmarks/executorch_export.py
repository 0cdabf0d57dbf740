"""Our 8da4w export of the LFM2-350M shape beside `export_llm`'s: file, CPU seconds, memory, decode speed.

    python benchmarks/executorch_export.py [--checkpoint FOLDER] [--context N]

Both get the same generated weights, groups of 32, a 4-bit embedding and the same context. The peer runs without HQQ,
its slower scale search. Each export is a process of its own; the decode figure is the least of many steps in one
process each, on one thread, the two taking turns so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PEER_OPTIONS = (
    "++base.model_class=lfm2_350m", "++model.use_kv_cache=true", "++model.use_sdpa_with_kv_cache=true",
    "++model.dtype_override=fp32", "++quantization.qmode=8da4w", "++quantization.group_size=32",
    "++quantization.embedding_quantize='4,32'", "++quantization.use_hqq=false", "++backend.xnnpack.enabled=true",
    "++backend.xnnpack.extended_ops=true",
)  # fmt: skip
_STEPS = 60
_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="an LFM2-350M folder in one file; default: generated")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        return decode(arguments.decode)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        checkpoint = arguments.checkpoint or generate(scratch / "LFM2-350M")
        rows = {
            "lfm-convert": ours(checkpoint, scratch, arguments.context),
            "export_llm": peer(checkpoint, scratch, arguments.context),
        }
        for row in rows.values():
            row["file_mb"] = row["path"].stat().st_size / 1e6
        for _ in range(_ROUNDS):
            for row in rows.values():
                row["decode_ms"] = min(row.get("decode_ms", 1e9), decode_in_process(row["path"]))
    show(rows)
    return None


def generate(folder: Path) -> Path:
    script = ROOT / "tests" / "support" / "checkpoints.py"
    subprocess.run([sys.executable, script, "--kind", "dense-350m", folder], check=True, stdout=sys.stderr)
    return folder


def ours(checkpoint: Path, scratch: Path, context: int) -> dict:
    out = scratch / "ours"
    command = [sys.executable, "-P", "-m", "lfm_convert", checkpoint, "--target", "executorch", "--quant", "8da4w"]
    found = measure([*command, "--context", context, "--out", out, "--no-validate", "--jobs", 1])
    return {**found, "path": next(out.glob("*.pte"))}


def peer(checkpoint: Path, scratch: Path, context: int) -> dict:
    weights, path = scratch / "peer.pth", scratch / "peer.pte"
    convert = (
        "from executorch.examples.models.lfm2.convert_weights import convert_weights as c; import sys; c(*sys.argv[1:])"
    )
    subprocess.run([sys.executable, "-P", "-c", convert, checkpoint, weights], check=True, stdout=sys.stderr)
    params = scratch / "params.json"
    params.write_text(json.dumps(peer_params(checkpoint)))
    limits = (f"++export.max_seq_length={context}", f"++export.max_context_length={context}")
    files = (f"++base.checkpoint={weights}", f"++base.params={params}", f"++export.output_name={path}")
    module = "executorch.extension.llm.export.export_llm"
    return {**measure([sys.executable, "-P", "-m", module, *_PEER_OPTIONS, *limits, *files]), "path": path}


def peer_params(checkpoint: Path) -> dict:
    """The config as `export_llm` wants it."""
    from lfm_convert.convert.model.config import load_config

    config = load_config(checkpoint)
    return {
        "dim": config.hidden_size,
        "ffn_dim_multiplier": 1,
        "hidden_dim": config.ffn_size,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "n_layers": config.n_layers,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
        "use_scaled_rope": False,
        "use_hf_rope": True,
        "use_qk_norm": True,
        "qk_norm_before_rope": True,
        "layer_types": [operator.value for operator in config.operators],
    }


def measure(command: list) -> dict:
    """CPU seconds and peak RSS of a process, as the kernel counted them."""
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [str(part) for part in command], stdout=sys.stderr, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))}: failed with {status}")
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_mb": usage.ru_maxrss / 1024,
        "wall_s": time.monotonic() - began,
    }


def decode_in_process(path: Path) -> float:
    command = [sys.executable, __file__, "--decode", path]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def decode(path: Path) -> None:
    """Prints the least milliseconds of a step."""
    import executorch.kernels.quantized  # noqa: F401
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(path).load_method("forward")
    method.execute((torch.arange(10, 74)[None], torch.tensor([0])))
    best = 1e9
    for step in range(_STEPS):
        began = time.perf_counter()
        method.execute((torch.tensor([[20 + step]]), torch.tensor([64 + step])))
        best = min(best, time.perf_counter() - began)
    print(best * 1e3)


def show(rows: dict[str, dict]) -> None:
    print(f"{'':12} {'file MB':>9} {'CPU s':>8} {'wall s':>8} {'RSS MB':>8} {'decode ms':>10}")
    table = {
        name: [row["file_mb"], row["cpu_s"], row["wall_s"], row["rss_mb"], row["decode_ms"]]
        for name, row in rows.items()
    }
    for name, (size, cpu, wall, rss, step) in table.items():
        print(f"{name:12} {size:9.2f} {cpu:8.1f} {wall:8.1f} {rss:8.0f} {step:10.2f}")
    mine, other = table.values()
    print("ratio        " + " ".join(f"{a / b:8.3f}" for a, b in zip(mine, other, strict=True)))


if __name__ == "__main__":
    main()
