"""The module as torch runs it, its regions too: what is exported, without the half minute that an export takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  # caches and attention
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Role
from lfm_convert.targets.executorch.constants import Constants, Matrix
from lfm_convert.targets.executorch.module import Model
from lfm_convert.targets.executorch.regions import EXPERT, LIBRARY, REGIONS, Matrices, RegionName, call_region
from lfm_convert.targets.stream import Execution, prepare_file, write_tensors
from lfm_convert.targets.target import get_target
from torch import Tensor

_current: list[Constants] = []


class EagerModel:
    """The float32 module of a graph, called as a program is: one conversation, which position 0 begins anew."""

    def __init__(self, graph: WeightGraph, folder: Path, *, context: int) -> None:
        _register()
        folder.mkdir(parents=True, exist_ok=True)
        plan = get_target("executorch").with_options({"context": context}).plan(graph, "fp32")
        prepare_file(folder / plan.details.scratch, header=b"", n_bytes=plan.details.scratch_bytes)
        write_tensors(plan.tensors, folder, Execution())
        self._constants = Constants(plan.tensors, folder)
        self._module = Model(graph, self._constants, context=context).eval()
        self._module.embed.table = torch.from_numpy(graph[Role.EMBED].read())  # in place of its stand-in

    def call(self, token_ids: Sequence[int], start: int) -> Float32:
        """Logits [1, V] of the last of these tokens, the first of them at position `start`."""
        _current[:] = [self._constants]
        with torch.no_grad():
            return np.asarray(self._module(torch.tensor([list(token_ids)]), torch.tensor([start])))

    def logits(self, pieces: Sequence[Sequence[int]]) -> Float32:
        """Logits [n, V] of the last token of each piece of a text."""
        start, rows = 0, []
        for piece in pieces:
            rows.append(self.call(piece, start))
            start += len(piece)
        return np.concatenate(rows)


@cache
def _register() -> None:
    """Gives torch what a region computes; a program has it from a delegate."""
    x = torch.zeros(1, 1, 2)
    with suppress(NotImplementedError):
        call_region("head", [x, x, x], [2])  # tells torch of the operator, which has no kernel yet
    torch.library.impl(f"{LIBRARY}::region", "CPU", _run)


def _run(inputs: list[Tensor], text: str, widths: list[int], like: list[int]) -> list[Tensor]:
    name = RegionName.parse(text)
    matrices = [_tensor(matrix) for matrix in _current[0].matrices(name)]
    given = inputs[:-1] if name.kind == EXPERT else inputs
    found = REGIONS[name.kind].function(Matrices(matrices, lambda x: x), *given)
    assert [each.shape[-1] for each in found] == widths
    return list(found)


def _tensor(matrix: Matrix) -> Tensor:
    (piece,) = matrix.pieces
    values = np.fromfile(piece.path, piece.dtype, piece.nbytes // piece.dtype.itemsize, offset=piece.offset)
    return torch.from_numpy(values.reshape(matrix.shape))
