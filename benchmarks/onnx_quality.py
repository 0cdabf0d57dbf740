"""Weight error and divergence of our integer blocks against ONNX Runtime's own quantizer, on the bundled models.

    python benchmarks/onnx_quality.py [--model bundled:moe …]

Error: root mean square of all matrices, relative to theirs. KLD: mean over all positions of the validator's
prompts, of the graph with decoded weights against the graph itself, in float32. Every matrix but the router is
quantized, in blocks of 32 with float32 scales. Bytes are those of codes, scales and zero points; a symmetric
peer has no zero points and is that much smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from lfm_convert.convert.model.forward import Forward
from lfm_convert.convert.model.graph import Weight, WeightGraph
from lfm_convert.convert.model.tensor import ArrayTensor
from lfm_convert.convert.pipeline import open_model
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.quantize.encodings.int_block import IntBlock32
from lfm_convert.quantize.policies.onnx import POLICIES
from lfm_convert.quantize.policy import find_policy
from lfm_convert.validate.metrics import position_kld
from lfm_convert.validate.prompts import encode_prompts, load_prompts
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

_MAX_TOKENS = 128
_BLOCK = 32

# Rows [n, n_cols] -> decoded rows and stored bytes.
Quantizer = Callable[[np.ndarray], tuple[np.ndarray, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print(f"{'model':14} {'bits':>4} {'algorithm':20} {'bytes':>10} {'error':>9} {'KLD':>9}")
    for model in arguments.model or ("bundled:dense", "bundled:moe"):
        reference = _Reference(open_model(model))
        for bits in (4, 8):
            for name, quantizer in _quantizers(bits).items():
                n_bytes, error, kld = reference.measure(quantizer)
                print(f"{reference.graph.name:14} {bits:4} {name:20} {n_bytes:10,} {error:9.5f} {kld:9.6f}", flush=True)


def _quantizers(bits: int) -> Mapping[str, Quantizer]:
    def default(symmetric: bool) -> Quantizer:
        config = DefaultWeightOnlyQuantConfig(
            block_size=_BLOCK, is_symmetric=symmetric, accuracy_level=4, bits=bits, op_types_to_quantize=("MatMul",)
        )
        return lambda rows: _peer(rows, config, bits)

    k_quant = KQuantWeightOnlyQuantConfig(
        customized_weight_config={"matmul": {"bits": bits, "group_size": _BLOCK}}, op_types_to_quantize=("MatMul",)
    )
    return {
        "ours": lambda rows: _ours(rows, bits),
        "DEFAULT symmetric": default(True),
        "DEFAULT asymmetric": default(False),
        "k_quant": lambda rows: _peer(rows, k_quant, bits),
    }


def _ours(rows: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    encoding = get_encoding(f"int{bits}_block32_f32")
    parts = encoding.encode(rows)
    return encoding.decode(*parts), sum(part.nbytes for part in parts)


def _peer(rows: np.ndarray, config: object, bits: int) -> tuple[np.ndarray, int]:
    """Runs the quantizer over a model of one product, and decodes the node it leaves."""
    n, n_cols = rows.shape
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")],
        "product",
        [helper.make_tensor_value_info("x", float_type, ["t", n_cols])],
        [helper.make_tensor_value_info("y", float_type, ["t", n])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(rows.T), "w")],
    )
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]),
        bits=bits, block_size=_BLOCK, algo_config=config,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # k_quant draws a progress bar
        quantizer.process()
    made = quantizer.model.model.graph
    (node,) = (node for node in made.node if node.op_type == "MatMulNBits")
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in made.initializer}
    values, scales, *zero_points = (stored[name] for name in node.input[1:] if name)
    n_blocks = n_cols // _BLOCK
    # Without zero points the middle code is meant.
    zeros = _codes(zero_points[0].reshape(n, -1), bits)[:, :n_blocks] if zero_points else 2 ** (bits - 1)
    steps = _codes(values, bits).reshape(n, n_blocks, _BLOCK).astype(np.float32) - np.expand_dims(zeros, -1)
    decoded = (steps * scales.reshape(n, n_blocks, 1)).astype(np.float32).reshape(n, n_cols)
    return decoded, sum(part.nbytes for part in (values, scales, *zero_points))


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


class _Reference:
    """A graph, its prompts, and its own logits of them."""

    def __init__(self, graph: WeightGraph) -> None:
        self.graph = graph
        encoded = encode_prompts(load_prompts(None), graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
        self._prompts = [prompt.token_ids[:_MAX_TOKENS] for prompt in encoded]
        self._logits = Forward(graph).prefill(self._prompts)[0]

    def measure(self, quantizer: Quantizer) -> tuple[int, float, float]:
        """Stored bytes, relative weight error, and mean KLD in nats."""
        policy, n_bytes, lost, whole, views = find_policy(POLICIES, "q4", target="onnx"), 0, 0.0, 0.0, {}
        for weight in self.graph.weights():
            if not isinstance(policy.choose(weight).encoding, IntBlock32):
                continue
            rows = weight.view.rows(0, weight.view.n_rows)
            decoded, size = _quantize(weight, rows, quantizer)
            views[weight.role, weight.layer] = ArrayTensor(weight.view.name, decoded.reshape(weight.shape))
            n_bytes += size
            lost += float(np.square(decoded - rows, dtype=np.float64).sum())
            whole += float(np.square(rows, dtype=np.float64).sum())
        logits = Forward(self.graph.with_weights(views)).prefill(self._prompts)[0]
        kld = np.concatenate([position_kld(a, b) for a, b in zip(self._logits, logits, strict=True)])
        return n_bytes, (lost / whole) ** 0.5, float(kld.mean())


def _quantize(weight: Weight, rows: np.ndarray, quantizer: Quantizer) -> tuple[np.ndarray, int]:
    """Experts of a stack one after the other, as an exporter meets them."""
    n_matrices = weight.shape[0] if len(weight.shape) == 3 else 1
    pieces = [quantizer(piece) for piece in np.split(rows, n_matrices)]
    return np.concatenate([decoded for decoded, _ in pieces]), sum(size for _, size in pieces)


if __name__ == "__main__":
    main()
