"""Packages that coremltools makes by itself, saved, and its own decoding of them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's warnings and progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


with quiet():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.milproto.load import load as load_mil
    from coremltools.converters.mil.mil import types

HALF, SINGLE, INT = types.fp16, types.fp32, types.int32


def tensor(*shape: int, dtype: Any = HALF) -> Any:
    return mb.TensorSpec(shape, dtype=dtype)


def state(*shape: int) -> Any:
    return mb.StateTensorSpec(shape, dtype=HALF)


def convert(source: Any, *, ios: int = 18, **more: Any) -> Any:
    """A model by coremltools' default passes; floats stay as the program declares them."""
    target = {16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}[ios]
    more.setdefault("compute_precision", ct.precision.FLOAT32)
    with quiet():
        return ct.convert(source, minimum_deployment_target=target, skip_model_load=True, **more)


def save(model: Any, folder: Path, name: str = "model") -> Path:
    path = folder / f"{name}.mlpackage"
    with quiet():
        model.save(str(path))
    return path


def program(function: Callable[..., Any], *inputs: Any, ios: int = 18, **more: Any) -> Any:
    """The model of a function written with `mb`, whose parameters name its inputs."""
    target = {16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}[ios]
    return convert(mb.program(input_specs=list(inputs), opset_version=target)(function), ios=ios, **more)


def decoded(path: Path) -> Mapping[str, np.ndarray]:
    """What coremltools itself makes of every compressed constant of `main`, by its name."""
    with quiet():
        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        loaded = load_mil(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    return {
        op.outputs[0].name: np.asarray(_materialised(op))
        for op in loaded.functions["main"].operations
        if op.op_type.startswith("constexpr_")
    }


def _materialised(op: Any) -> np.ndarray:
    """What the library decodes, also a palette whose table is itself compressed, which it leaves alone."""
    table = getattr(op, "lut", None)
    if table is not None and table.val is None:
        axis = None if op.vector_axis is None else op.vector_axis.val
        return op.decompress(op.indices.val, _materialised(table.op), axis)
    return op.materialized_val_inference()
