"""Builds an ONNX graph: nodes with readable names, small constants inline, weights by reference."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10


class GraphBuilder:
    """Collects nodes in order. `float_type` is the ONNX element type of activations.

    A branch of an `If` is built by `branch()`: a builder of its own whose nodes may use every name
    of the graph around it.
    """

    def __init__(self, float_type: int, *, outer: GraphBuilder | None = None) -> None:
        self.float_type = float_type
        self.nodes: list[Any] = []
        self._outer = outer
        self._root: GraphBuilder = outer._root if outer else self
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inline: list[Any] = []
        self._used: dict[str, int] = {}
        self._functions: dict[str, tuple[Hashable, Any]] = {}
        self._scope: str = outer._scope if outer else ""

    @property
    def inline(self) -> list[Any]:
        """Constants stored inside the graph file."""
        return self._root._inline

    @property
    def functions(self) -> list[Any]:
        """The functions that the graph defines."""
        return [function for _, function in self._root._functions.values()]

    def defines(self, name: str, sizes: Hashable, make: Callable[[], Any]) -> bool:
        """Whether the graph's function of this name is one for these sizes: the first who asks has it made."""
        known = self._root._functions
        if name not in known:
            known[name] = (sizes, make())
        return known[name][0] == sizes

    @property
    def is_half(self) -> bool:
        """Whether activations are float16, not float32."""
        from onnx import TensorProto

        return self.float_type == int(TensorProto.FLOAT16)

    @property
    def float_dtype(self) -> str:
        """The element type of activations as numpy writes it."""
        return "<f2" if self.is_half else "<f4"

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of the nodes built inside."""
        before, self._scope = self._scope, f"{self._scope}/{name}"
        try:
            yield
        finally:
            self._scope = before

    def branch(self) -> GraphBuilder:
        return GraphBuilder(self.float_type, outer=self)

    def op(self, op_type: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name. An input "" is an absent optional one."""
        return self.ops(op_type, *inputs, domain=domain, outputs=(output,), **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, outputs: Sequence[str | None], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Adds a node with several outputs: a name, None for a generated one, "" for an absent one."""
        from onnx import helper

        name = self._unique(f"{self._scope}/{op_type}")
        names = tuple(f"{name}/out{i}" if o is None else o for i, o in enumerate(outputs))
        self.nodes.append(helper.make_node(op_type, list(inputs), list(names), name=name, domain=domain, **attributes))
        return names

    def _unique(self, name: str) -> str:
        count = self._root._used[name] = self._root._used.get(name, -1) + 1
        return f"{name}_{count}" if count else name

    def constant(self, value: Any, dtype: str) -> str:
        """A small constant, stored once however often it is used."""
        from onnx import numpy_helper

        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        root = self._root
        if key not in root._constants:
            root._constants[key] = name = f"const_{len(root._constants)}"
            root._inline.append(numpy_helper.from_array(array, name))
        return root._constants[key]

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.constant(values, "<i8")

    def scalar(self, value: float) -> str:
        """A rank-0 float32 constant."""
        return self.constant(value, "<f4")

    def cast(self, x: str, to: int) -> str:
        return self.op("Cast", x, to=to)

    def to_float32(self, x: str) -> str:
        """x as float32, without a node where activations are float32 already."""
        from onnx import TensorProto

        return self.cast(x, TensorProto.FLOAT) if self.is_half else x

    def from_float32(self, x: str) -> str:
        """A float32 value as the graph's activation type."""
        return self.cast(x, self.float_type) if self.is_half else x

    def reshape(self, x: str, *shape: int) -> str:
        """x in another shape: a size of 0 is kept, one of -1 follows from the rest."""
        return self.op("Reshape", x, self.ints(*shape))

    def slice(self, x: str, start: int, stop: int | None, axis: int, *, output: str | None = None) -> str:
        stop = np.iinfo(np.int64).max if stop is None else stop
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis), output=output)
