"""Encoded parts of tuned weights on the disk, layer by layer: what is finished stays, whatever ends a run.

A folder holds `tuned.json` and a file a weight: its parts end to end, each as the encoding lays out a whole tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.errors import InputError
from ...graph.files import disk_error, hash_files, replace_text
from ...graph.json_text import parse_json
from ...graph.roles import Address, find_role
from ...graph.tensor import Shape
from ..encoding import Bytes, Encoding, get_encoding, matrix_height
from ..stored import EncodedTensor, StoredPart

_LIST = "tuned.json"


@dataclass(frozen=True, kw_only=True)
class TunedWeight:
    """What is known of one. Errors are sums over rows under the moments of the inputs, of the encoder's codes and of these."""

    role: str
    layer: int | None
    encoding: str
    shape: Shape
    sha256: str
    stock_error: float
    tuned_error: float

    @property
    def address(self) -> Address:
        return find_role(self.role), self.layer

    @property
    def file(self) -> str:
        return _file(self.address)


class Store:
    """Tuned weights of one piece of work, of which `key` is a digest; those of another in the same folder are given up."""

    def __init__(self, folder: Path, key: str) -> None:
        """Raises: InputError for a folder that is not one of these or was changed; DiskError."""
        self.folder, self.key = folder, key
        self.layers: list[int | None] = []
        self.weights: dict[Address, TunedWeight] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from None
        if (folder / _LIST).is_file():
            self._load()
        elif any(folder.iterdir()):
            raise InputError(
                f"{folder}: holds other files and no {_LIST}: choose a folder of its own for what is tuned"
            )

    def encoded(self, address: Address, name: str) -> EncodedTensor:
        """A tuned weight, decoded when it is read."""
        weight = self.weights[address]
        encoding, at = get_encoding(weight.encoding), 0
        parts = []
        for n_bytes in _part_sizes(encoding, weight.shape):
            parts.append(StoredPart(self.folder / weight.file, at))
            at += n_bytes
        return EncodedTensor(name, weight.shape, encoding, tuple(parts))

    @contextmanager
    def writing(self, address: Address, encoding: Encoding, shape: Shape) -> Iterator[Writing]:
        """Takes parts of a weight, range by range. Raises: DiskError."""
        path = self.folder / _file(address)
        try:
            with path.open("w+b") as file:
                yield Writing(file.fileno(), encoding, shape)
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, path) from None

    def add(self, address: Address, encoding: Encoding, shape: Shape, *, stock: float, tuned: float) -> None:
        """Lists a weight that is written; it counts when its layer is finished."""
        (sha256,) = hash_files([self.folder / _file(address)], jobs=1)
        role, layer = address
        self.weights[address] = TunedWeight(
            role=role.value, layer=layer, encoding=encoding.stored_name, shape=shape, sha256=sha256,
            stock_error=stock, tuned_error=tuned,
        )  # fmt: skip

    def finish(self, layer: int | None) -> None:
        """Keeps what is written of a layer, or outside of them. Raises: DiskError."""
        self.layers.append(layer)
        listed = {"key": self.key, "layers": self.layers, "weights": [asdict(each) for each in self.weights.values()]}
        try:
            replace_text(self.folder / _LIST, json.dumps(listed, indent=1) + "\n")
        except OSError as error:
            raise disk_error(error, self.folder / _LIST) from None

    def check(self) -> None:
        """Raises InputError if a file is not what was written."""
        found = hash_files([self.folder / each.file for each in self.weights.values()], jobs=1)
        for each, sha256 in zip(self.weights.values(), found, strict=True):
            if each.sha256 != sha256:
                raise InputError(
                    f"{self.folder / each.file}: has sha256 {sha256[:12]}…: expected {each.sha256[:12]}…; remove the "
                    "folder to tune again"
                )

    def _load(self) -> None:
        path = self.folder / _LIST
        try:
            listed: Mapping[str, Any] = parse_json(path.read_text(encoding="utf-8"))
            key, layers = str(listed["key"]), [None if each is None else int(each) for each in listed["layers"]]
            weights = [TunedWeight(**{**each, "shape": tuple(each["shape"])}) for each in listed["weights"]]
            found = {each.address: each for each in weights}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: is not what tuning writes ({error!r}): remove the folder to tune again"
            ) from None
        if key == self.key:
            self.layers, self.weights = layers, found
            missing = [each.file for each in weights if not (self.folder / each.file).is_file()]
            if missing:
                raise InputError(f"{self.folder / missing[0]}: is missing; remove the folder to tune again")
            self.check()


class Writing:
    """A file of parts that is being written, by several threads if need be."""

    def __init__(self, descriptor: int, encoding: Encoding, shape: Shape) -> None:
        self._descriptor, self._shape = descriptor, shape
        self._parts = encoding.parts(shape[-1])
        sizes = _part_sizes(encoding, shape)
        self._starts = np.cumsum([0, *sizes])[:-1].tolist()

    def put(self, start: int, arrays: tuple[Bytes, ...]) -> None:
        """Parts of rows from `start` on, the first of a tile."""
        height = matrix_height(self._shape)
        for part, at, values in zip(self._parts, self._starts, arrays, strict=True):
            data = np.ascontiguousarray(values, part.dtype).reshape(-1).view(np.uint8)
            os.pwrite(self._descriptor, data.data, at + part.offset(start, height))


def digest_of(facts: object) -> str:
    """A key for what is tuned how."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _file(address: Address) -> str:
    role, layer = address
    return f"{role.value}.bin" if layer is None else f"{layer:03}-{role.value}.bin"


def _part_sizes(encoding: Encoding, shape: Shape) -> list[int]:
    n_rows, height = int(np.prod(shape[:-1])), matrix_height(shape)
    return [part.offset(n_rows, height) for part in encoding.parts(shape[-1])]
