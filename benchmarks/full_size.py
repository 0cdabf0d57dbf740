"""Conversions of the family's largest models, generated at their real shapes: seconds, memory and bytes.

    python benchmarks/full_size.py [--shapes moe-8b lfm2.5-8b moe-24b] [--cases gguf:Q4_0 …] [--scratch FOLDER]
    python benchmarks/full_size.py --shapes moe-8b --cases gguf:Q4_0@lora mlx:4bit-g32@gguf:Q4_0 gguf:Q4_K_M@compressed-tensors:W4A16

Each conversion is a process of its own; `cp` of the checkpoint runs in the same session, and every wall time is given as
a ratio to it. The copy is on the disk when its time ends, as an artifact is when it is published: `cp` alone ends when the
bytes are in memory, which took from 19 to 87 s for the same file. Before each the checkpoint's pages are dropped from
memory, so that all of them read the disk. Memory is the process's own high-water mark. A .pte is also loaded by another
process, which generates eight tokens. Disk: the checkpoint, its copy and one artifact, 42 GB for the 8 B shapes and 63 GB
for 24 B, which is not copied but read.
A case with `@lora` has an adapter of rank 16 merged into every matrix of the layers, every expert's too; one with
`@TARGET:QUANT` is made from an artifact instead of the checkpoint.
Ends with 1 if a size is not as planned (.pte: within 1 %), or a process held more than 400 MB (.pte: 14 GB of anonymous
memory, torch and executorch alone being more than 400 MB).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import Measured, measure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
TOOL = [sys.executable, "-P", "-m", "lfm_convert"]
CASES = ("gguf:Q4_0", "gguf:Q4_K_M", "gguf:Q8_0", "onnx:q4f16", "mlx:8bit", "executorch:8da4w")
# LFM2-24B-A2B shows that memory does not grow with the model; one target is enough for that.
SHAPES = {"moe-8b": CASES, "lfm2.5-8b": CASES, "moe-24b": ("gguf:Q4_0",)}
_COPIED_BYTES = 20 * 10**9
_PTE_TOLERANCE = 0.01
_RSS_LIMIT_GB = 0.4
_PTE_LIMIT_GB = 2.0
_PROMPT = list(range(100, 108))
_N_TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cases", nargs="*", help="target:quant; default: those of each shape")
    parser.add_argument("--checkpoint", type=Path, help="of the one shape named, generated before")
    parser.add_argument("--generate", type=Path, metavar="FOLDER", help="only write the checkpoint of the shape there")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    arguments = parser.parse_args()
    if arguments.generate:
        return generate(arguments.generate, arguments.shapes[0])
    is_good = True
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
            checkpoint = arguments.checkpoint or Path(name) / shape
            if arguments.checkpoint is None:
                measure([sys.executable, __file__, "--shapes", shape, "--generate", checkpoint])
            is_good &= table(shape, checkpoint, arguments.cases or SHAPES[shape], Path(name))
    sys.exit(0 if is_good else 1)


def generate(folder: Path, shape: str, n_layers: int | None = None) -> None:
    """Writes a checkpoint of random weights. No two tensors are alike, so that none is stored once for two."""
    from support.checkpoints import make_checkpoint, preset

    if shape == "lfm2.5-8b":
        config = json.loads((ROOT / "tests/fixtures/configs/lfm2.5-8b-a1b.json").read_text())
    else:
        config = preset(shape)
    if n_layers:
        config |= {"num_hidden_layers": n_layers, "layer_types": config["layer_types"][:n_layers]}
    make_checkpoint(folder, config, shards=4)


def table(shape: str, checkpoint: Path, cases: list[str], scratch: Path) -> bool:
    """Prints a row a conversion. Returns whether all sizes were as planned and no process held too much."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    source_bytes = sum(path.stat().st_size for path in files)
    copied = copy(files, scratch) if source_bytes < _COPIED_BYTES else read(files)
    print(f"{shape}: {source_bytes / 1e9:.2f} GB; {copied[0]} {copied[1]:.0f} s", flush=True)
    print(f"{'case':18} {'GB':>7} {'plan':>7} {'wall s':>7} {'ratio':>6} {'CPU s':>7} {'RSS MB':>7} {'anonymous':>9}")
    is_good = True
    for case in cases:
        wanted, _, origin = case.partition("@")
        target, quant = wanted.split(":")
        source, options = source_of(origin, checkpoint, scratch)
        asked = [source, "--target", target, "--quant", quant, *options]
        planned = json.loads(measure([*TOOL, "plan", *asked, "--json"]).output)
        planned_bytes = planned["plans"][0]["total_bytes"]
        forget([*files, *(path for path in source.rglob("*") if path.is_file())])
        out = scratch / "out"
        done = measure([*TOOL, *asked, "--out", out, "--no-validate", "--json", "-"])
        size = sum(artifact["size_bytes"] for artifact in json.loads(done.output)["artifacts"])
        error = planned_bytes / size - 1
        print(
            f"{case:18} {size / 1e9:7.3f} {error:+7.2%} {done.wall_s:7.0f} {done.wall_s / copied[1]:6.2f} "
            f"{done.cpu_s:7.0f} {1000 * done.rss_gb:7.0f} {1000 * done.anonymous_gb:9.0f}",
            flush=True,
        )
        if target == "executorch":
            is_good &= abs(error) <= _PTE_TOLERANCE and done.anonymous_gb <= _PTE_LIMIT_GB
            show_tokens(measure([sys.executable, "-P", "-c", _RUN, out]))
        else:
            is_good &= error == 0 and done.rss_gb <= _RSS_LIMIT_GB
        shutil.rmtree(out)
    return is_good


def source_of(origin: str, checkpoint: Path, scratch: Path) -> tuple[Path, list[str | Path]]:
    """What a case is made from, and the options that this takes; made the first time that it is asked for."""
    folder = scratch / f"from-{origin.replace(':', '-')}"
    if not origin:
        return checkpoint, []
    if origin == "lora":
        if not folder.exists():
            write_lora(checkpoint, folder)
        return checkpoint, ["--adapter", folder]
    target, quant = origin.split(":")
    if not folder.exists():
        measure([*TOOL, checkpoint, "--target", target, "--quant", quant, "--out", folder, "--no-validate"])
    found = json.loads((folder / "lfm-convert.json").read_text())["artifacts"][0]
    return (folder / found["main_file"] if target == "gguf" else (folder / found["main_file"]).parent), []


def write_lora(checkpoint: Path, folder: Path, rank: int = 16) -> None:
    """A PEFT adapter of every matrix of the layers, with random values."""
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors, modules = {}, []
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            names = file.keys()
            for name in names:
                shape = file.get_slice(name).get_shape()
                if len(shape) != 2 or ".layers." not in name or name.endswith("gate.weight"):
                    continue
                modules.append(name.removesuffix(".weight"))
                for letter, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                    key = f"base_model.model.{modules[-1]}.lora_{letter}.weight"
                    tensors[key] = 0.01 * rng.standard_normal(size, np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def copy(files: list[Path], scratch: Path) -> tuple[str, float]:
    """`cp` of a checkpoint and the flush of the copy, in seconds."""
    forget(files)
    target = scratch / "copy"
    target.mkdir()
    wall_s = measure(["sh", "-c", 'cp "$@" "$0" && cd "$0" && sync *', target, *files]).wall_s
    shutil.rmtree(target)
    return "cp and sync", wall_s


def read(files: list[Path]) -> tuple[str, float]:
    """Seconds of reading a checkpoint that is too large to be copied here."""
    forget(files)
    return "cat to /dev/null", measure(["sh", "-c", 'cat "$@" > /dev/null', "sh", *files]).wall_s


def forget(files: list[Path]) -> None:
    """Writes what is not yet on the disk, and drops the files' pages from memory."""
    subprocess.run(["sync"], check=True)
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# In a process of its own: load the artifact of a folder as the validator does, prefill, decode greedily.
_RUN = f"""
import sys, time
from pathlib import Path
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.targets.target import get_target
(artifact,) = find_artifacts(Path(sys.argv[1]))
began = time.monotonic()
runner = get_target("executorch").with_options(artifact.options).run(artifact, threads=2)
loaded = time.monotonic()
tokens = [int(runner.call({_PROMPT}, 0)[-1].argmax())]
prefilled = time.monotonic()
steps = []
while len(tokens) < {_N_TOKENS}:
    at = time.monotonic()
    tokens.append(int(runner.call(tokens[-1:], {len(_PROMPT)} + len(tokens) - 1)[-1].argmax()))
    steps.append(time.monotonic() - at)
print(f"load {{loaded - began:.1f}} s, prefill of {len(_PROMPT)} {{prefilled - loaded:.2f}} s, "
      f"decode {{min(steps):.3f}} s a token at least; tokens {{tokens}}")
"""


def show_tokens(found: Measured) -> None:
    print(f"{'':18} another process: {found.output.strip()}; {found.rss_gb:.2f} GB RSS", flush=True)


if __name__ == "__main__":
    main()
