"""Packages of the bundled models, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.opening import open_graph

from .packages import Made, make

CONTEXT, CHUNK = 256, 16


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """The bundled model of a kind in a quant, with options of the target; by default a context of four windows."""
    known: dict[Any, Made] = {}

    def get(kind: str, quant: str, **options: Any) -> Made:
        pytest.importorskip("coremltools", reason='pip install "lfm-convert[coreml]"')
        options = {"context": CONTEXT, "chunk": CHUNK, **options}
        key = kind, quant, *sorted(options.items())
        if key not in known:
            graph = open_graph(bundled.path(kind))
            known[key] = make(graph, quant, tmp_path_factory.mktemp("coreml"), **options)
        return known[key]

    return get
