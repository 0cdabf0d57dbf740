"""The schemes of a compressed-tensors config, and which module has which.

A module that `ignore` names has none. Of the groups one whose target is the module's name goes before one whose target
is a pattern ("re:..."), and that before one of its class.
Source: compressed-tensors 0.20 `quantization/quant_config.py`, `quant_args.py`, `compressors/format.py`, `utils/match.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .patterns import fits
from .taking import Taking, is_count

# What a config says of a weight that it keeps as a float of so many bits, with so many columns a scale.
_MINIFLOATS = {(4, 16): "nvfp4-pack-quantized", (4, 32): "mxfp4-pack-quantized", (6, 32): "mxfp6-pack-quantized"}
FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized",
)  # fmt: skip
_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_EMBEDDING, _LINEAR = "Embedding", "Linear"


@dataclass(frozen=True)
class Scheme:
    """How weights are stored: `columns` of a row share a scale, and `rows` of a block; 0 stands for all."""

    format: str
    bits: int
    is_symmetric: bool
    strategy: str
    rows: int
    columns: int

    @property
    def words(self) -> str:
        """`int4 g32 asymmetric`."""
        per = {
            "tensor": "a scale a tensor",
            "channel": "a scale a row",
            "block": f"in blocks of {self.rows}x{self.columns}",
        }
        kind = self.format.split("-")[0]
        kind = {"nvfp4": "NVFP4", "mxfp4": "MXFP4", "mxfp6": "MXFP6", "mxfp8": "MXFP8"}.get(kind, f"int{self.bits}")
        if self.format == "float-quantized":
            kind = "FP8"
        asymmetric = "" if self.is_symmetric else " asymmetric"
        return f"{kind} {per.get(self.strategy, f'g{self.columns}')}{asymmetric}"


@dataclass(frozen=True)
class Schemes:
    """The groups of a config: targets, and the scheme, None of one that is not read; and the modules without any."""

    groups: tuple[tuple[str, Scheme | None], ...]
    ignored: tuple[str, ...]

    def of(self, module: str, *, is_table: bool) -> tuple[bool, Scheme | None]:
        """Whether a group has the module, and its scheme. `is_table` says that it is an embedding."""
        if any(_matches(module, name) for name in self.ignored):
            return False, None
        kind = _EMBEDDING if is_table else _LINEAR
        by_name = [scheme for target, scheme in self.groups if target == module]
        by_pattern = [scheme for target, scheme in self.groups if target != module and _matches(module, target)]
        by_class = [scheme for target, scheme in self.groups if target == kind]
        found = [*by_name, *by_pattern, *by_class]
        return bool(found), found[0] if found else None


def read_schemes(settings: Mapping[str, Any], taking: Taking) -> Schemes:
    """Every group of a config; what is not read is a fault."""
    groups = settings.get("config_groups")
    ignored = settings.get("ignore") or []
    if not isinstance(groups, Mapping) or not _are_texts(ignored):
        taking.fault("config_groups and ignore of the quantization_config must be an object and a list of names")
        return Schemes((), ())
    if settings.get("transform_config"):
        taking.fault("the quantization_config has a transform_config: weights that were rotated are not read")
    found: list[tuple[str, Scheme | None]] = []
    for name, group in groups.items():
        if not isinstance(group, Mapping) or not _are_texts(group.get("targets")):
            taking.fault(f"{name} of config_groups must be an object with a list of targets")
            continue
        args = group.get("weights")
        if isinstance(args, Mapping):  # else the group is of activations alone
            scheme = _scheme(f"{name} of config_groups", args, _format(group, settings, args), taking)
            found += [(target, scheme) for target in group["targets"]]
    return Schemes(tuple(found), tuple(ignored))


def _format(group: Mapping[str, Any], settings: Mapping[str, Any], args: Mapping[str, Any]) -> Any:
    """The group's own, else that of all; of several, what the library takes such weights for."""
    said = group.get("format") or settings.get("format")
    if said != "mixed-precision":
        return said
    bits, columns, kind = args.get("num_bits"), args.get("group_size"), args.get("type")
    if kind != "float":
        return "int-quantized" if group.get("input_activations") else "pack-quantized"
    if bits == 8:
        return "mxfp8-quantized" if columns == 32 and "uint8" in str(args.get("scale_dtype")) else "float-quantized"
    return _MINIFLOATS.get((bits, columns), said) if isinstance(bits, int) and isinstance(columns, int) else said


def _scheme(where: str, args: Mapping[str, Any], format_: Any, taking: Taking) -> Scheme | None:
    bits, kind, strategy = args.get("num_bits"), args.get("type", "int"), _strategy(args)
    symmetric, columns = args.get("symmetric", True), args.get("group_size")
    if format_ not in FORMATS:
        taking.fault(f"{where} has the format {format_!r:.40}: expected one of {', '.join(FORMATS)}")
        return None
    if strategy not in _STRATEGIES:
        taking.fault(f"{where} has the strategy {strategy!r:.40}: expected one of {', '.join(_STRATEGIES)}")
        return None
    expected = _bits_of(format_, kind)
    if bits not in expected:
        taking.fault(
            f"{where} has num_bits {bits!r:.20} and type {kind!r:.20}: expected {_words(expected)} in {format_}"
        )
        return None
    if kind == "float" and not symmetric:
        taking.fault(f"{where} has floats with zero points: expected symmetric")
        return None
    block = args.get("block_structure") if strategy == "block" else [1, columns]
    if strategy in ("tensor", "channel"):
        block = [0 if strategy == "tensor" else 1, 0]
    if not isinstance(block, list) or len(block) != 2 or not all(is_count(n, least=0) for n in block):
        taking.fault(
            f"{where} has the group_size {columns!r:.20} for the strategy {strategy!r}: expected a number of columns"
        )
        return None
    return Scheme(format_, bits, bool(symmetric), strategy, *block)


def _strategy(args: Mapping[str, Any]) -> Any:
    """What the library infers where a config does not say."""
    if args.get("strategy") is not None:
        return args["strategy"]
    size = args.get("group_size")
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _bits_of(format_: str, kind: Any) -> tuple[int, ...]:
    if format_ == "pack-quantized":
        return tuple(range(1, 9)) if kind == "int" else ()
    if format_ == "int-quantized" or (format_ == "naive-quantized" and kind == "int"):
        return tuple(range(2, 9)) if kind == "int" else ()
    if kind != "float":
        return ()
    return {"nvfp4-pack-quantized": (4,), "mxfp4-pack-quantized": (4,), "mxfp6-pack-quantized": (6,)}.get(format_, (8,))


def _words(bits: tuple[int, ...]) -> str:
    return "another type" if not bits else f"{bits[0]} to {bits[-1]} bits" if len(bits) > 1 else f"{bits[0]} bits"


def _are_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _matches(module: str, target: str) -> bool:
    return fits(target[3:], module) if target.startswith("re:") else module == target
