"""What is installed beside the tool, as a CycloneDX document: it is what an artifact's bytes were made with.

It holds no time and its number follows from its content, so that the same environment gives the same bytes.
"""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ...graph.errors import needs_extra

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_TOOL = "lfm-convert"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def bill_of_materials() -> bytes:
    """Every installed distribution with version, licence and what it needs, as CycloneDX 1.6 JSON.

    Raises: BackendError without the extra `release`.
    """
    with needs_extra("release", "a bill of materials"):
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import ComponentType
        from cyclonedx.output.json import JsonV1Dot6

    found = {_normal(each.metadata["Name"]): each for each in distributions() if each.metadata["Name"]}
    tool = found.pop(_TOOL, None)
    bom = Bom()
    bom.metadata.component = root = _component(_TOOL, __version__, kind=ComponentType.APPLICATION)
    components = {name: _described(name, each) for name, each in sorted(found.items())}
    python = _component("cpython", platform.python_version(), kind=ComponentType.PLATFORM)
    bom.components.update([*components.values(), python])
    bom.register_dependency(root, [components[name] for name in _needed(tool) if name in components] if tool else [])
    for name, each in found.items():
        bom.register_dependency(components[name], [components[other] for other in _needed(each) if other in components])
    listed = "\n".join(f"{name}=={each.version}" for name, each in sorted(found.items()))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{_TOOL}=={__version__}\n{python.version}\n{listed}")
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _described(name: str, each: Distribution) -> Component:
    from cyclonedx.model.component import ComponentType

    return _component(name, each.version, kind=ComponentType.LIBRARY, licence=_licence(each))


def _component(name: str, version: str, *, kind: Any, licence: str = "") -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    purl = PackageURL("generic" if name == "cpython" else "pypi", None, name, version)
    licences = [LicenseFactory().make_from_string(licence)] if licence else []
    return Component(name=name, version=version, type=kind, purl=purl, bom_ref=purl.to_string(), licenses=licences)


def _licence(each: Distribution) -> str:
    """As the package says it in a line; of older ones that say it in prose only the kind, by their classifier."""
    fields = [each.metadata[key] for key in ("License-Expression", "License") if key in each.metadata]
    said = next(filter(None, fields), "")
    if said and "\n" not in said and len(said) < 100:
        return said
    kinds = (text for text in each.metadata.get_all("Classifier") or () if text.startswith("License ::"))
    return next(kinds, "").rpartition("::")[2].strip()


def _needed(each: Distribution) -> Iterator[str]:
    """What a distribution needs without any extra, by normal names."""
    for requirement in each.requires or ():
        name = _NAME.match(requirement)
        if name is not None and "extra ==" not in requirement:
            yield _normal(name[0])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
