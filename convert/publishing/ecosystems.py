"""What a hub's visitors and clients expect of a repository, by target: its name, labels and layout."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Ecosystem:
    """`suffix` ends the names of its repositories; `library` and `tags` are what the hub's filters look for; `clients`
    are named to people.

    Of one that `is_alone` each artifact is a repository, since clients load a repository and not a file of it.
    One that `reads_beside` takes tokenizer and config from files beside the artifacts.
    """

    suffix: str
    clients: str
    library: str
    tags: tuple[str, ...]
    is_alone: bool = False
    reads_beside: bool = False


ECOSYSTEMS = {
    "gguf": Ecosystem(
        suffix="GGUF", clients="llama.cpp, LM Studio and Ollama", library="gguf", tags=("gguf", "llama.cpp")
    ),
    "onnx": Ecosystem(
        suffix="ONNX",
        clients="ONNX Runtime and Transformers.js",
        library="transformers.js",
        tags=("onnx", "onnxruntime"),
        reads_beside=True,
    ),
    "mlx": Ecosystem(
        suffix="MLX", clients="mlx-lm and LM Studio on a Mac", library="mlx", tags=("mlx",), is_alone=True
    ),
    "executorch": Ecosystem(
        suffix="ExecuTorch",
        clients="ExecuTorch on phones and desktops",
        library="executorch",
        tags=("executorch",),
        reads_beside=True,
    ),
    "coreml": Ecosystem(
        suffix="CoreML",
        clients="Core ML on iPhones, iPads and Macs",
        library="coreml",
        tags=("coreml",),
        reads_beside=True,
    ),
    "compressed-tensors": Ecosystem(
        suffix="compressed-tensors",
        clients="Transformers, vLLM and SGLang",
        library="transformers",
        tags=("compressed-tensors", "vllm"),
        is_alone=True,
    ),
}
# Of models that give vectors, where they are another.
ECOSYSTEMS_OF_VECTORS = {
    **ECOSYSTEMS,
    "gguf": replace(ECOSYSTEMS["gguf"], clients="llama.cpp"),
    "onnx": replace(ECOSYSTEMS["onnx"], clients="ONNX Runtime", library="onnx"),
}
