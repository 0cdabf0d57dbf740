"""Weight error and divergence of our integer blocks against ONNX Runtime's own quantizer, on the bundled models.

    python benchmarks/onnx_quality.py [--model bundled:moe …] [--bits 8 …] [--draws 12]

Error: root mean square of all matrices, relative to theirs. KLD: of the graph with decoded weights against the graph
itself, in float32, over all positions of the validator's prompts and of the text that the bundled models were not
trained on (--draws draws more of it): mean with its standard error, how much that is more than ours, position by
position, with its own, and median. Where a mixture of experts sends a token elsewhere the KLD is hundreds of times
the median, so that at 8 bits few positions make the mean: "> 0.01" is their share. Every matrix but the router is quantized, in blocks of 32
with float32 scales. Bytes are those of codes, scales and zero points; a symmetric peer has no zero points and is that
much smaller. "ours, weighed" takes the importance of columns measured on the training text, as `lfm-convert calibrate`
and `--imatrix` do; its error is of all columns alike.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from lfm_convert.convert.bundled.making import corpus
from lfm_convert.convert.bundled.making.tokenizer import render
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.calibration import calibrate
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
# Documents run together.
_BATCH = 64
# Dialogues, and topics of prose, that importance is measured on, beside some modules of code.
_N_CALIBRATION, _N_MODULES = 200, 4

# Rows [n, n_cols], importance of columns [n_cols] or None -> decoded rows and stored bytes.
Quantizer = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--bits", type=int, action="append")
    parser.add_argument("--draws", type=int, default=12, help="Draws of dialogues that the models were not trained on.")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    for model in arguments.model or ("bundled:dense", "bundled:moe"):
        reference = _Reference(open_model(model), arguments.draws)
        print(f"{reference.graph.name}, {reference.n_positions:,} positions")
        heads = ("mean KLD", "± s.e.", "to ours", "± s.e.", "median", "> 0.01")
        print(f"{'bits':>4} {'algorithm':20} {'bytes':>10} {'error':>9} " + " ".join(f"{head:>9}" for head in heads))
        for bits in arguments.bits or (4, 8):
            ours = np.zeros(0)
            for name, quantizer in _quantizers(bits).items():
                n_bytes, error, kld = reference.measure(quantizer)
                ours = kld if name == "ours" else ours
                means = [f"{each.mean():9.6f} {each.std() / len(each) ** 0.5:9.6f}" for each in (kld, kld - ours)]
                print(
                    f"{bits:4} {name:20} {n_bytes:10,} {error:9.5f} {' '.join(means)} {np.median(kld):9.6f} {(kld > 0.01).mean():9.4%}",
                    flush=True,
                )


def _quantizers(bits: int) -> Mapping[str, Quantizer]:
    def default(symmetric: bool) -> Quantizer:
        config = DefaultWeightOnlyQuantConfig(
            block_size=_BLOCK, is_symmetric=symmetric, accuracy_level=4, bits=bits, op_types_to_quantize=("MatMul",)
        )
        return lambda rows, importance: _peer(rows, config, bits)

    k_quant = KQuantWeightOnlyQuantConfig(
        customized_weight_config={"matmul": {"bits": bits, "group_size": _BLOCK}}, op_types_to_quantize=("MatMul",)
    )
    return {
        "ours": lambda rows, importance: _ours(rows, bits),
        "ours, weighed": lambda rows, importance: _ours(rows, bits, importance),
        "DEFAULT symmetric": default(True),
        "DEFAULT asymmetric": default(False),
        "k_quant": lambda rows, importance: _peer(rows, k_quant, bits),
    }


def _ours(rows: np.ndarray, bits: int, importance: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    encoding = get_encoding(f"int{bits}_block32_f32")
    parts = encoding.encode(rows, importance)
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
    """A graph, its texts, its own logits of them, and the importance of its columns."""

    def __init__(self, graph: WeightGraph, n_draws: int) -> None:
        self.graph = graph
        encoded = encode_prompts(load_prompts(None), graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
        train, held_out = corpus.build(seed=0)
        more = [replace(corpus.build(seed=seed)[1], prose=(), code=()) for seed in range(1, n_draws)]
        texts = [prompt.token_ids for prompt in encoded]
        texts += [ids for split in (held_out, *more) for ids in _documents(graph, split)]
        self._texts = [ids[:_MAX_TOKENS] for ids in dict.fromkeys(map(tuple, texts))]
        self._logits = list(self._run(graph))
        self.n_positions = sum(map(len, self._texts))
        some = corpus.Texts(
            dialogues=train.dialogues[:_N_CALIBRATION], prose=train.prose[:_N_CALIBRATION], code=train.code[:_N_MODULES]
        )
        self._uses = calibrate(graph, [ids[:_MAX_TOKENS] for ids in _documents(graph, some)])

    def _run(self, graph: WeightGraph) -> Iterator[np.ndarray]:
        """Logits of each text, in batches, so that memory is bounded."""
        forward = Forward(graph)
        for start in range(0, len(self._texts), _BATCH):
            yield from forward.prefill(self._texts[start : start + _BATCH])[0]

    def measure(self, quantizer: Quantizer) -> tuple[int, float, np.ndarray]:
        """Stored bytes, relative weight error, and the KLD of every position in nats."""
        policy, n_bytes, lost, whole, views = find_policy(POLICIES, "q4", target="onnx"), 0, 0.0, 0.0, {}
        for weight in self.graph.weights():
            if not isinstance(policy.choose(weight).encoding, IntBlock32):
                continue
            rows = weight.view.rows(0, weight.view.n_rows)
            decoded, size = self._quantize(weight, rows, quantizer)
            views[weight.role, weight.layer] = ArrayTensor(weight.view.name, decoded.reshape(weight.shape))
            n_bytes += size
            lost += float(np.square(decoded - rows, dtype=np.float64).sum())
            whole += float(np.square(rows, dtype=np.float64).sum())
        found = zip(self._logits, self._run(self.graph.with_weights(views)), strict=True)
        kld = np.concatenate([position_kld(a, b) for a, b in found])
        return n_bytes, (lost / whole) ** 0.5, kld

    def _quantize(self, weight: Weight, rows: np.ndarray, quantizer: Quantizer) -> tuple[np.ndarray, int]:
        """Experts of a stack one after the other, as an exporter meets them."""
        n_matrices = weight.shape[0] if len(weight.shape) == 3 else 1
        use = self._uses.get((weight.role, weight.layer))
        columns = [None] * n_matrices if use is None else list(use.sums)
        pieces = [quantizer(*each) for each in zip(np.split(rows, n_matrices), columns, strict=True)]
        return np.concatenate([decoded for decoded, _ in pieces]), sum(size for _, size in pieces)


def _documents(graph: WeightGraph, texts: corpus.Texts) -> list[Sequence[int]]:
    """Token ids of a split: dialogues, then prose and code in pieces."""
    chats = [graph.tokenizer.encode(render(each.messages, tools=each.tools), special=False) for each in texts.dialogues]
    plain = [graph.tokenizer.encode(text) for text in (*texts.prose, *texts.code)]
    pieces = [ids[start : start + _MAX_TOKENS] for ids in plain for start in range(0, len(ids), _MAX_TOKENS)]
    return [*chats, *pieces]


if __name__ == "__main__":
    main()
