"""Builds the functions of an ML program: operations with the types of what they give, constants once a function.

The types are stated here as Core ML infers them; tests hold them to what coremltools infers from the same program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .mil import Dtype, Feature, Shape, file_value, function, immediate, named_type, operation, tensor_type
from .store import Stored, WeightStore

_CASTS = {Dtype.FLOAT16: "fp16", Dtype.FLOAT32: "fp32"}


@dataclass(frozen=True)
class Var:
    """A value of a function, by its name there."""

    name: str
    dtype: Dtype
    shape: Shape


Literal = bool | int | str | list[int] | np.float16 | np.float32
Given = Var | Literal | Sequence[Var]


class Builder:
    """One function. Names of values are the scope, the operation and a number."""

    def __init__(self, store: WeightStore) -> None:
        self.store = store
        self._operations: list[bytes] = []
        self._constants: dict[tuple[Dtype, Shape, bytes], Var] = {}
        self._weights: dict[tuple[str, Shape], Var] = {}
        self._counts: dict[str, int] = {}
        self._scope = ""
        self._held: dict[str, Var] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        before, self._scope = self._scope, f"{self._scope}{name}_"
        try:
            yield
        finally:
            self._scope = before

    def serialise(self, inputs: Sequence[Feature], states: Sequence[Feature], outputs: Sequence[str]) -> bytes:
        return function(inputs, states, self._operations, outputs)

    def emit(self, kind: str, outputs: Sequence[tuple[Dtype, Shape]], name: str = "", /, **inputs: Given) -> list[Var]:
        """An operation whose outputs are of these types. Literals become constants."""
        name = name or self._fresh(kind)
        bound = {key: self._bound(value) for key, value in inputs.items()}
        names = [name] if len(outputs) == 1 else [f"{name}_{i}" for i in range(len(outputs))]
        made = [Var(each, *type_) for each, type_ in zip(names, outputs, strict=True)]
        self._append(kind, name, bound, made)
        return made

    def one(self, kind: str, dtype: Dtype, shape: Shape, name: str = "", /, **inputs: Given) -> Var:
        return self.emit(kind, [(dtype, shape)], name, **inputs)[0]

    # What operations there are, each with the rule for what it gives.

    def unary(self, kind: str, x: Var, /, **inputs: Given) -> Var:
        return self.one(kind, x.dtype, x.shape, x=x, **inputs)

    def binary(self, kind: str, x: Var, y: Var | Literal, *, is_bool: bool = False) -> Var:
        shape = np.broadcast_shapes(x.shape, y.shape if isinstance(y, Var) else ())
        return self.one(kind, Dtype.BOOL if is_bool else x.dtype, shape, x=x, y=y)

    def scaled(self, x: Var, factor: float) -> Var:
        """x times a constant; x itself if that is one."""
        return x if factor == 1 else self.binary("mul", x, float_of(x.dtype, factor))

    def cast(self, x: Var, dtype: Dtype, name: str = "") -> Var:
        if x.dtype is dtype and not name:
            return x
        return self.one("cast", dtype, x.shape, name, x=x, dtype=_CASTS[dtype])

    def reshape(self, x: Var, *shape: int) -> Var:
        return x if x.shape == shape else self.one("reshape", x.dtype, shape, x=x, shape=list(shape))

    def transpose(self, x: Var, *perm: int) -> Var:
        return self.one("transpose", x.dtype, tuple(x.shape[i] for i in perm), x=x, perm=list(perm))

    def concat(self, values: Sequence[Var], axis: int, name: str = "") -> Var:
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.one("concat", values[0].dtype, tuple(shape), name, values=values, axis=axis, interleave=False)

    def split(self, x: Var, count: int, axis: int) -> list[Var]:
        if count == 1:
            return [x]
        shape = list(x.shape)
        shape[axis] //= count
        return self.emit("split", [(x.dtype, tuple(shape))] * count, x=x, num_splits=count, axis=axis)

    def slice(self, x: Var, begin: Sequence[int], end: Sequence[int]) -> Var:
        """A part whose place is fixed."""
        shape = tuple(high - low for low, high in zip(begin, end, strict=True))
        if shape == x.shape:
            return x
        return self.one("slice_by_index", x.dtype, shape, x=x, begin=list(begin), end=list(end))

    def slice_at(self, x: Var, begin: Var, size: Sequence[int]) -> Var:
        """A part whose place is computed: `begin` is int32 [rank]."""
        return self.one("slice_by_size", x.dtype, tuple(size), x=x, begin=begin, size=list(size))

    def linear(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """x [..., in] times weight [out, in], transposed, and a bias [out]."""
        n_out = weight.shape[0]
        bias = bias or self.zeros(weight.dtype, n_out)
        return self.one("linear", x.dtype, (*x.shape[:-1], n_out), x=x, weight=weight, bias=bias)

    def matmul(self, x: Var, y: Var, *, transpose_y: bool = False) -> Var:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        shape = (*batch, x.shape[-2], y.shape[-2 if transpose_y else -1])
        return self.one("matmul", x.dtype, shape, x=x, y=y, transpose_x=False, transpose_y=transpose_y)

    def reduce(self, kind: str, x: Var, axis: int, *, keep: bool) -> Var:
        shape = list(x.shape)
        shape[axis : axis + 1 or None] = [1] if keep else []
        return self.one(kind, x.dtype, tuple(shape), x=x, axes=[axis], keep_dims=keep)

    def gather(self, x: Var, indices: Var) -> Var:
        """Rows of the first axis."""
        shape = (*indices.shape, *x.shape[1:])
        return self.one("gather", x.dtype, shape, x=x, indices=indices, axis=0, batch_dims=0, validate_indices=False)

    # States.

    def read_state(self, state: Feature) -> Var:
        """What a state holds: read once, and once more after each time that it was written."""
        if state.name not in self._held:
            place = Var(state.name, state.dtype, state.shape)
            self._held[state.name] = self.one("read_state", state.dtype, state.shape, input=place)
        return self._held[state.name]

    def write_state(self, state: Feature, value: Var) -> None:
        """Lets a state hold a value from now on."""
        name = self._fresh("write_state")
        self._append("write_state", name, {"input": [state.name], "data": [value.name]}, [])
        self._held.pop(state.name, None)

    # Constants.

    def constant(self, stored: Stored, shape: Shape | None = None) -> Var:
        """A stored weight, decoded where it is encoded; once a function. Plain ones may be given another shape."""
        shape = stored.shape if shape is None else shape
        name = stored.name
        if (name, shape) not in self._weights:
            name += f"_{len(self._weights)}" if any(name == known for known, _ in self._weights) else ""
            var = Var(name, stored.dtype, shape)
            kind, parts = stored.operation(shape)
            values = {key: file_value(blob.dtype, size, blob.offset) for key, (blob, size) in parts.items()}
            if kind == "const":
                self._const(var, values["val"])
            else:
                self._append(kind, name, {key: [value] for key, value in values.items()}, [var])
            self._weights[stored.name, shape] = var
        return self._weights[stored.name, shape]

    def zeros(self, dtype: Dtype, count: int) -> Var:
        return self.constant(self.store.zeros(dtype, count))

    def _bound(self, value: Given) -> list[str | bytes]:
        if isinstance(value, Var):
            return [value.name]
        if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Var):
            return [each.name for each in value if isinstance(each, Var)]
        return [self.literal(value).name]  # type: ignore[arg-type]

    def literal(self, value: Literal) -> Var:
        """A small constant: a scalar, or a list of integers."""
        dtype, shape, values = _typed(value)
        data = immediate(dtype, shape, values)
        key = dtype, shape, data
        if key not in self._constants:
            var = Var(f"const_{dtype.name.lower()}_{len(self._constants)}", dtype, shape)
            self._const(var, data)
            self._constants[key] = var
        return self._constants[key]

    def _const(self, var: Var, value: bytes) -> None:
        self._append("const", var.name, {}, [var], val=value)

    def _append(
        self, kind: str, name: str, inputs: Mapping[str, Sequence[str | bytes]], outputs: Sequence[Var], **more: bytes
    ) -> None:
        types = [named_type(each.name, tensor_type(each.dtype, each.shape)) for each in outputs]
        attributes = {"name": immediate(Dtype.STRING, (), [name]), **more}
        self._operations.append(operation(kind, inputs, types, attributes))

    def _fresh(self, kind: str) -> str:
        stem = self._scope + kind
        self._counts[stem] = self._counts.get(stem, -1) + 1
        return f"{stem}_{self._counts[stem]}"


def float_of(dtype: Dtype, value: float) -> np.float16 | np.float32:
    """A number as the literal of a float type."""
    return np.float16(value) if dtype is Dtype.FLOAT16 else np.float32(value)


def _typed(value: Literal) -> tuple[Dtype, Shape, list[bool | int | float | str]]:
    if isinstance(value, list):
        return Dtype.INT32, (len(value),), [*value]
    if isinstance(value, np.floating):
        return Dtype.FLOAT16 if value.dtype.itemsize == 2 else Dtype.FLOAT32, (), [float(value)]
    if isinstance(value, bool):
        return Dtype.BOOL, (), [value]
    return Dtype.STRING if isinstance(value, str) else Dtype.INT32, (), [value]
