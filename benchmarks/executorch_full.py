"""LFM2-8B-A1B's shape through the whole ExecuTorch export: memory, bytes, seconds, and eight tokens out of the file.

    python benchmarks/executorch_full.py [--layers 24] [--scratch FOLDER] [-- OPTION …]

The checkpoint (16.7 GB) is generated, since constants of the same content are stored once: no two tensors are alike.
It, the export's own scratch file and the .pte lie in a temporary folder of FOLDER, 27 GB in all. Export and run are a
process each, whose anonymous memory is sampled every 20 ms; what follows `--` goes to `lfm-convert`. Ends with 1 if
the export holds more than 14 GB of anonymous memory at once or the file is not within 1 % of its plan.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SHAPE = "moe-8b"
_QUANT = "8da4w"
_LIMIT_GB = 14.0
_TOLERANCE = 0.01
_PROMPT = list(range(100, 108))
_N_TOKENS = 8


@dataclass(frozen=True)
class Measured:
    """A process that ended well. Units: seconds, GB (10^9 bytes)."""

    output: str
    wall_s: float
    cpu_s: float
    anonymous_gb: float
    rss_gb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="fewer layers, for a quick look")
    parser.add_argument("--checkpoint", type=Path, help="one generated before, such as by --generate")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    parser.add_argument("--generate", type=Path, metavar="FOLDER", help="only write the checkpoint there")
    parser.add_argument("options", nargs="*", help="for lfm-convert, such as --context 1024")
    arguments = parser.parse_args()
    if arguments.generate:
        return generate(arguments.generate, arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        checkpoint = arguments.checkpoint or Path(name) / "LFM2-8B-A1B"
        if not arguments.checkpoint:
            layers = ["--layers", arguments.layers] if arguments.layers else []
            measure([sys.executable, __file__, "--generate", checkpoint, *layers])
        is_good = full(checkpoint, Path(name) / "out", arguments.options)
    sys.exit(0 if is_good else 1)


def full(checkpoint: Path, out: Path, options: list[str]) -> bool:
    """Prints the table. Returns whether memory and size are within their limits."""
    source_bytes = sum(file.stat().st_size for file in checkpoint.iterdir())
    print(f"checkpoint {source_bytes / 1e9:.2f} GB, lfm-convert {' '.join(options)}", flush=True)
    tool = [sys.executable, "-P", "-m", "lfm_convert"]
    arguments = ["--target", "executorch", "--quant", _QUANT, *options]
    planned = json.loads(measure([*tool, "plan", checkpoint, *arguments, "--json"]).output)
    export = measure([*tool, checkpoint, *arguments, "--out", out, "--no-validate"])
    size = sum(file.stat().st_size for file in out.iterdir() if file.suffix in (".pte", ".ptd"))
    error = planned["total_bytes"] / size - 1
    print(f"files {size / 1e9:.3f} GB, plan {error:+.2%}")
    show("export", export)
    run = measure([sys.executable, "-P", "-c", _RUN, out])
    show("run", run)
    print(run.output.strip(), flush=True)
    return export.anonymous_gb <= _LIMIT_GB and abs(error) <= _TOLERANCE


def generate(folder: Path, n_layers: int | None) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from support.checkpoints import make_checkpoint, preset

    config = preset(_SHAPE)
    if n_layers:
        config |= {"num_hidden_layers": n_layers, "layer_types": config["layer_types"][:n_layers]}
    make_checkpoint(folder, config, shards=4)


# In a process of its own: load the artifact of a folder as the validator does, prefill, decode greedily.
_RUN = f"""
import sys, time
from pathlib import Path
from lfm_convert.convert.pipeline import find_artifacts
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


def measure(command: list[object]) -> Measured:
    """Runs a process to its end, sampling its memory. Raises SystemExit if it fails."""
    began, before = time.monotonic(), _children_s()
    peaks = {"RssAnon": 0, "VmRSS": 0}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors)
        while child.poll() is None:
            for key, n_bytes in _memory(child.pid):
                peaks[key] = max(peaks[key], n_bytes)
            time.sleep(0.02)
        output.seek(0)
        printed = output.read()
        if child.returncode:
            errors.seek(0)
            raise SystemExit(f"{errors.read()}\n{' '.join(map(str, command))}: failed with {child.returncode}")
    used = {key: n_bytes / 1e9 for key, n_bytes in peaks.items()}
    return Measured(printed, time.monotonic() - began, _children_s() - before, used["RssAnon"], used["VmRSS"])


def _memory(pid: int) -> Iterator[tuple[str, int]]:
    """Anonymous and resident bytes of a process; nothing if it has just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "VmRSS"):
            yield key, int(value.split()[0]) * 1024


def _children_s() -> float:
    """CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def show(name: str, found: Measured) -> None:
    print(
        f"{name:7} {found.wall_s:6.0f} s wall, {found.cpu_s:6.0f} CPU s, peak {found.anonymous_gb:.2f} GB anonymous, "
        f"{found.rss_gb:.2f} GB RSS",
        flush=True,
    )


if __name__ == "__main__":
    main()
