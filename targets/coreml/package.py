"""Files of an .mlpackage and beside it.

| file                                        | content                                               |
|---------------------------------------------|-------------------------------------------------------|
| NAME.mlpackage/Manifest.json                | the package's items and which of them is the model    |
| …/Data/com.apple.CoreML/model.mlmodel       | the specification: functions, their inputs, metadata  |
| …/Data/com.apple.CoreML/weights/weight.bin  | constants, see `store`                                |
| model_config.json                           | of all packages of the folder: what an app feeds them |
| config.json, tokenizer.json, …              | what swift-transformers' `AutoTokenizer` reads        |

Identifiers of items, random in packages of Apple's tools, are derived from what they stand for.
Source: coremltools `modelpackage/src/ModelPackage.cpp`.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from ..._version import __version__
from ...graph.graph import WeightGraph
from ...graph.source.front_matter import front_matter
from ..hub_folder import json_bytes
from .interface import CONTEXT_KEY, DECODE, PART_KEY, PREFILL, QUANT_KEY, STOPS_KEY
from .mil import Feature
from .piece import Piece

_AUTHOR = "com.apple.CoreML"
MODEL = f"Data/{_AUTHOR}/model.mlmodel"
WEIGHTS = f"Data/{_AUTHOR}/weights/weight.bin"
SUFFIX = ".mlpackage"
MODEL_CONFIG = "model_config.json"


def manifest() -> bytes:
    """Manifest.json."""
    items = {"model.mlmodel": "CoreML Model Specification", "weights": "CoreML Model Weights"}
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_AUTHOR}/{name}")) for name in items}
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": _AUTHOR,
                "description": description,
                "name": name,
                "path": f"{_AUTHOR}/{name}",
            }
            for name, description in sorted(items.items(), key=lambda item: identifiers[item[0]])
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    return (json.dumps(content, indent=4) + "\n").encode()


def metadata(piece: Piece, quant: str) -> dict[str, object]:
    """What Xcode shows of a package, and by which an app sees that package and tokenizer belong together."""
    graph, caches = piece.graph, piece.caches
    config = json.dumps(graph.config.raw, sort_keys=True).encode()
    own = {
        CONTEXT_KEY: str(caches.context),
        "chunk": str(caches.chunk),
        QUANT_KEY: quant,
        "model_type": graph.config.model_type,
        STOPS_KEY: ",".join(map(str, graph.stop_ids)),
        "config_sha256": hashlib.sha256(config).hexdigest(),
    }
    if piece.count > 1:
        own[PART_KEY] = f"{piece.number} of {piece.count}"
    if graph.tokenizer is not None:
        own["tokenizer_sha256"] = hashlib.sha256(graph.tokenizer.raw).hexdigest()
    return {
        "shortDescription": f"{graph.name} ({quant}), converted to Core ML",
        "versionString": __version__,
        "author": "lfm-convert",
        "license": str(front_matter(graph.assets.model_card).get("license", "")),
        "userDefined": dict(sorted(own.items())),
    }


def model_config(graph: WeightGraph, packages: Mapping[str, tuple[Piece, str]]) -> bytes:
    """model_config.json: by the name of each package what it holds, and its quant."""
    config = graph.config
    content = {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "stop_token_ids": list(graph.stop_ids),
        "packages": {
            name: {
                "quant": quant,
                "context": piece.caches.context,
                "chunk": piece.caches.chunk,
                **({"part": piece.number, "parts": piece.count} if piece.count > 1 else {}),
                "functions": {function: _function(piece, function) for function in (DECODE, PREFILL)},
            }
            for name, (piece, quant) in sorted(packages.items())
        },
    }
    return json_bytes(content)


def _function(piece: Piece, name: str) -> dict[str, Any]:
    said = piece.signature(name)
    kinds = {"inputs": said.inputs, "outputs": said.outputs, "states": said.states}
    return {kind: {each.name: _described(each) for each in features} for kind, features in kinds.items()}


def _described(feature: Feature) -> dict[str, Any]:
    return {"type": feature.dtype.name.lower(), "shape": list(feature.shape)}
