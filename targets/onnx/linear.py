"""Matrix products and table look-ups over stored matrices, float or packed.

Activations between operators are [batch, sequence, features]; inside a mixture of experts, [tokens, features].
"""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.graph import Layer, Weight
from ...graph.roles import Role
from ...quantize.encodings.int_block import IntBlock32
from .builder import MICROSOFT, GraphBuilder
from .store import Matrix, WeightStore

# Activations as int8 inside the kernel: at level 0 the CPU decodes 8-bit weights first, 400 times slower.
ACCURACY_LEVEL = 4


def matmul(b: GraphBuilder, x: str, matrix: Matrix, *, output: str | None = None, is_flat: bool = False) -> str:
    """x [..., n_cols] times the matrix, transposed: [..., n_rows]. `is_flat`: x has two axes, as Gemm wants it."""
    encoding = matrix.encoding
    if not isinstance(encoding, IntBlock32):
        if is_flat:
            return b.op("Gemm", x, matrix.parts[0], transB=1, output=output)
        flat = b.op("Gemm", b.reshape(x, -1, matrix.n_cols), matrix.parts[0], transB=1)
        shape = b.op("Concat", b.op("Shape", x, end=-1), b.ints(matrix.n_rows), axis=0)
        return b.op("Reshape", flat, shape, output=output)
    return b.op(
        "MatMulNBits",
        x,
        *matrix.parts,
        domain=MICROSOFT,
        K=matrix.n_cols,
        N=matrix.n_rows,
        bits=encoding.bits,
        block_size=encoding.block,
        accuracy_level=ACCURACY_LEVEL,
        output=output,
    )


def linear(
    b: GraphBuilder, store: WeightStore, x: str, name: str, weights: Sequence[Weight], *, together: int = 1
) -> list[str]:
    """x [..., in] times each weight [out, in], transposed: one output [..., out] a weight, the first few `together`.

    Weights of one encoding are stored as one matrix called `name` and multiplied at once.
    """
    groups = store.groups(weights)
    sizes = [weight.view.n_rows for weight in weights]
    if len(groups) == 1:
        return split(b, matmul(b, x, store.add(name, weights)), [sum(sizes[:together]), *sizes[together:]])
    outputs: list[str] = []
    for group in groups:
        y = matmul(b, x, store.add(f"{name}.{group[0].role.value}", group))
        outputs += split(b, y, [weight.view.n_rows for weight in group])
    if together == 1:
        return outputs
    return [b.op("Concat", *outputs[:together], axis=-1), *outputs[together:]]


def add_bias(b: GraphBuilder, store: WeightStore, layer: Layer, role: Role, x: str) -> str:
    """x plus the layer's bias of that role, if it has one."""
    return add_biases(b, store, layer, (role,), x)


def add_biases(b: GraphBuilder, store: WeightStore, layer: Layer, roles: Sequence[Role], x: str) -> str:
    """x plus the biases of these roles side by side, if the layer has them."""
    weights = [layer.weights[role] for role in roles if role in layer.weights]
    if not weights:
        return x
    names = [store.add(weight.view.name, [weight], weight.shape).parts[0] for weight in weights]
    return b.op("Add", x, names[0] if len(names) == 1 else b.op("Concat", *names, axis=0))


def split(b: GraphBuilder, x: str, sizes: Sequence[int]) -> list[str]:
    """Cuts the last axis into pieces of these sizes."""
    if len(sizes) == 1:
        return [x]
    return list(b.ops("Split", x, b.ints(*sizes), outputs=[None] * len(sizes), axis=-1))


def lookup(b: GraphBuilder, matrix: Matrix, ids: str) -> str:
    """Rows [B, S, n_cols] of a stored matrix, as activations; ids is [B, S].

    Packed rows are gathered packed and decoded with operators that every execution provider has:
    GatherBlockQuantized is missing from the WebAssembly build that Transformers.js loads.
    """
    encoding = matrix.encoding
    if not isinstance(encoding, IntBlock32):
        return b.op("Gather", matrix.parts[0], ids, axis=0)
    values, scales, zero_points = (b.op("Gather", part, ids, axis=0) for part in matrix.parts)
    n_blocks = matrix.n_cols // encoding.block
    codes = _codes(b, values, encoding.bits, matrix.n_cols)
    n_zeros = encoding.parts(matrix.n_cols)[2].row_shape[0] * 8 // encoding.bits
    zero = _codes(b, zero_points, encoding.bits, n_zeros)
    if n_zeros > n_blocks:
        zero = b.slice(zero, 0, n_blocks, 2)
    decoded = b.op("DequantizeLinear", codes, b.to_float32(scales), zero, axis=2, block_size=encoding.block)
    return b.from_float32(decoded)


def _codes(b: GraphBuilder, packed: str, bits: int, count: int) -> str:
    """Codes uint8 [B, S, count] of bytes that hold one or two each, the low nibble first."""
    from onnx import TensorProto

    if bits == 4:
        both = b.constant([(byte & 15, byte >> 4) for byte in range(256)], "|u1")
        packed = b.op("Gather", both, b.cast(packed, TensorProto.INT32), axis=0)
    return b.reshape(packed, 0, 0, count)
