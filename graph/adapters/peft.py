"""The tensors of PEFT's `adapter_model.safetensors` as changes of a model's tensors.

| name, below `base_model.model.` and the module | what it is |
|---|---|
| `lora_A.weight`, `lora_B.weight` | [rank, in], [out, rank]; of a stack of experts [experts * rank, in], [out, rank * experts] |
| `lora_B.bias` | added to the module's bias |
| `lora_magnitude_vector` | DoRA's, [out]; of an embedding [in] |
| `lora_embedding_A`, `lora_embedding_B` | [rank, vocabulary], [hidden, rank] |
| `weight`, `bias` | the module's own, trained |
| `base_layer.weight` | the base's table or head, beside what changes it |
| `token_adapter.trainable_tokens_delta` | rows of the embedding, as they are after training |

A parameter that is no module's weight is adapted through its module: of several of one module, the last stands there and
each before it one `base_layer` deeper.
Source: PEFT 0.21.2 `utils/save_and_load.py`, `tuners/lora/layer.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..dtypes import WEIGHT_DTYPES
from ..errors import Faults
from ..roles import Role
from ..source.adapters import ADAPTER_CONFIG
from ..tensor import Shape, TensorView
from .changes import Added, AddedBias, Change, Decomposed, DecomposedTable, Product, Replaced, ReplacedRows
from .modules import Modules
from .settings import LoraSettings

_PREFIXES = ("base_model.model.", "_orig_mod.")
_WRAPPED = ".base_layer"
_A, _B, _BIAS, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"
_BASE_WEIGHT = f"{_WRAPPED}.weight"
_TABLE_A, _TABLE_B, _TOKENS = "lora_embedding_A", "lora_embedding_B", "token_adapter.trainable_tokens_delta"
# What many faults of one kind are called.
_TYPE, _UNKNOWN, _SHAPE = "tensors are of no float type", "tensors are of another model", "tensors have another shape"
_RANK, _MISSING = "tensors have another rank than declared", "tensors are missing"
_PARTS = (_A, _B, _BIAS, _MAGNITUDE, _TABLE_A, _TABLE_B, _TOKENS)


@dataclass
class PeftReader:
    """Turns the tensors of one adapter into changes; what does not fit the model is a fault. `weight` multiplies what is
    added.
    """

    modules: Modules
    settings: LoraSettings
    weight: float
    faults: Faults
    changes: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))
    bases: dict[str, TensorView] = field(default_factory=dict)
    _told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def read(self, tensors: Mapping[str, TensorView]) -> None:
        """`tensors` by their stored names. `bases` are the base's own tensors that lie among them."""
        parts: dict[str, dict[str, TensorView]] = defaultdict(dict)
        for stored_name, tensor in tensors.items():
            name = _bare(stored_name)
            part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
            if tensor.dtype not in WEIGHT_DTYPES:
                self._tell(_TYPE, f"tensor '{stored_name}' is {tensor.dtype.value}: expected F32, F16 or BF16")
            elif part is None:
                self._take_whole(name, tensor, stored_name)
            else:
                parts[name.removesuffix(f".{part}")][part] = tensor
        for module, found in parts.items():
            self._adapt(module, found)
        self._miss(parts)
        for together, sentences in self._told.items():
            self.faults.add_alike(sentences, together)

    def _tell(self, together: str, sentence: str) -> None:
        """A fault, and what many of its kind are called."""
        self._told[together].append(sentence)

    def _take_whole(self, name: str, tensor: TensorView, stored_name: str) -> None:
        is_base = name.endswith(_BASE_WEIGHT)
        name = name.replace(_WRAPPED, "")
        if not self._has_shape(name, tensor, stored_name):
            return
        if is_base:
            self.bases[name] = tensor
        else:
            self._refuse_weight(f"'{stored_name}' replaces a tensor")
            self.changes[name].append(Replaced(by=tensor))

    def _adapt(self, module: str, found: Mapping[str, TensorView]) -> None:
        if _TOKENS in found:
            self._train_tokens(module, found[_TOKENS])
        if _TABLE_A in found or _TABLE_B in found:
            self._adapt_table(module, found)
        elif found.keys() - {_TOKENS}:
            self._adapt_matrix(module, found)

    def _adapt_matrix(self, module: str, found: Mapping[str, TensorView]) -> None:
        name, pair = self._target(module), self._pair(module, found, _A, _B)
        if name is None or pair is None:
            return
        shape = self.modules.shape(name) or ()
        if name in self.modules.kernels or len(shape) not in (2, 3):
            self._tell(_UNKNOWN, f"'{module}' is {self._odd(name)}")
            return
        right, left = pair
        n_stacked = shape[0] if len(shape) == 3 else 1
        ranks = n_stacked * self.settings.rank_of(_module_of(name))
        fits = self._fits(module, _A, right, (ranks, shape[-1]), axis=0)
        if not (self._fits(module, _B, left, (shape[-2], ranks), axis=1) and fits):
            return
        product = Product(left=left, right=right, scale=self._scale(name), n_stacked=n_stacked)
        is_bare = bool(self.settings.parameters_of(_parent_of(name), [name]))
        if self._is_decomposed(name, found, shape[-2]):
            self.changes[name].append(Decomposed(name=name, product=product, magnitude=found[_MAGNITUDE]))
        else:
            self.changes[name].append(Added(product=product, rounds_first=is_bare))
        if _BIAS in found:
            self._add_bias(module, found[_BIAS], self._scale(name))

    def _odd(self, name: str) -> str:
        """Why a tensor takes no product of two matrices."""
        if name in self.modules.kernels:
            return "a grouped convolution, whose LoRA PEFT itself cannot merge"
        return "no matrix, which a LoRA could change"

    def _adapt_table(self, module: str, found: Mapping[str, TensorView]) -> None:
        name, pair = f"{module}.weight", self._pair(module, found, _TABLE_A, _TABLE_B)
        if pair is None or module != self.modules.table:
            if pair is not None:
                self._tell(_UNKNOWN, f"the model has no embedding '{module}'")
            return
        left, right = pair
        n_rows, n_cols = self.modules.shape(name) or (0, 0)
        rank = self.settings.rank_of(module)
        fits = self._fits(module, _TABLE_A, left, (rank, n_rows), axis=0)
        if not (self._fits(module, _TABLE_B, right, (n_cols, rank), axis=1) and fits):
            return
        product = Product(left=left, right=right, scale=self._scale(name), left_is_turned=True)
        if self._is_decomposed(name, found, n_cols):
            base = self.bases.get(name, self.modules.graph[Role.EMBED])
            change = DecomposedTable(name=name, product=product, magnitude=found[_MAGNITUDE], base=base)
            self.changes[name].append(change)
        else:
            self.changes[name].append(Added(product=product, rounds_first=True))

    def _is_decomposed(self, name: str, found: Mapping[str, TensorView], n: int) -> bool:
        """Whether a module has its `n` magnitudes of DoRA; a fault if it ought to and has not, or the other way round."""
        magnitude = found.get(_MAGNITUDE)
        if (magnitude is None) == self.settings.is_dora:
            what = "has no magnitudes" if magnitude is None else "has magnitudes of DoRA"
            self._tell(_SHAPE, f"'{name}' {what}, and use_dora is {str(self.settings.is_dora).lower()}")
        elif magnitude is not None and magnitude.shape != (n,):
            self._tell(_SHAPE, f"the magnitudes of '{name}' are {list(magnitude.shape)}: expected [{n}]")
        elif magnitude is not None:
            self._refuse_weight(f"'{name}' has magnitudes of DoRA")
            return True
        return False

    def _add_bias(self, module: str, bias: TensorView, scale: float) -> None:
        name = f"{module}.bias"
        if self.modules.shape(name) is None:
            self._tell(_UNKNOWN, f"'{module}' has a LoRA of its bias, and the model no such bias: PEFT cannot merge it")
        elif self._has_shape(name, bias, f"{module}.{_BIAS}"):
            self.changes[name].append(AddedBias(bias=bias, scale=scale))

    def _train_tokens(self, module: str, rows: TensorView) -> None:
        name, tables = f"{module}.weight", self.settings.tokens
        own = next((ids for key, ids in tables.items() if not key or module == key or module.endswith(f".{key}")), None)
        shape = self.modules.shape(name)
        if shape is None or len(shape) != 2:
            self._tell(_UNKNOWN, f"the model has no embedding '{module}'")
        elif own is None or rows.shape != (len(own), shape[1]):
            expected = "none" if own is None else [len(own), shape[1]]
            self.faults.add(
                f"the trained tokens of '{module}' are {list(rows.shape)}: trainable_token_indices expects {expected}"
            )
        elif max(own, default=0) >= shape[0]:
            self.faults.add(f"trainable_token_indices has {max(own)}: the embedding has {shape[0]} rows")
        else:
            self._refuse_weight(f"'{module}' has trained tokens")
            self.changes[name].append(ReplacedRows(by=rows, at=own))

    def _target(self, module: str) -> str | None:
        """The tensor that a module's LoRA changes; a fault if there is none."""
        depth, bare = module.count(_WRAPPED), module.replace(_WRAPPED, "")
        parameters = self.settings.parameters_of(bare, list(self.modules.seats))
        if depth < len(parameters):
            return parameters[-1 - depth]
        if not parameters and depth == 0 and self.modules.shape(f"{bare}.weight") is not None:
            return f"{bare}.weight"
        self._tell(_UNKNOWN, f"the model has no module '{module}'")
        return None

    def _pair(
        self, module: str, found: Mapping[str, TensorView], first: str, second: str
    ) -> tuple[TensorView, TensorView] | None:
        missing = [part for part in (first, second) if part not in found]
        if missing:
            self._tell(_MISSING, f"tensor '{module}.{missing[0]}' is missing beside the others of its module")
            return None
        return found[first], found[second]

    def _fits(self, module: str, part: str, tensor: TensorView, expected: Shape, *, axis: int) -> bool:
        """Whether a factor has its shape: another rank than declared, and another module's size, are told apart."""
        shape = tensor.shape
        if shape == expected:
            return True
        if len(shape) == 2 and shape[1 - axis] == expected[1 - axis]:
            self._tell(
                _RANK, f"tensor '{module}.{part}' has rank {shape[axis]}: {ADAPTER_CONFIG} declares {expected[axis]}"
            )
        else:
            self._tell(_SHAPE, f"tensor '{module}.{part}' has shape {list(shape)}: the model expects {list(expected)}")
        return False

    def _has_shape(self, name: str, tensor: TensorView, stored_name: str) -> bool:
        shape = self.modules.shape(name)
        if shape is None:
            self._tell(_UNKNOWN, f"tensor '{stored_name}' is not part of the model")
        elif tensor.shape != shape:
            self._tell(_SHAPE, f"tensor '{stored_name}' has shape {list(tensor.shape)}: the model's has {list(shape)}")
        return tensor.shape == shape

    def _scale(self, name: str) -> float:
        return self.settings.scaling_of(_module_of(name)) * self.weight

    def _refuse_weight(self, what: str) -> None:
        if self.weight != 1:
            self.faults.add(f"{what}, which a weight cannot multiply: expected weight 1, found {self.weight:g}")

    def _miss(self, parts: Mapping[str, object]) -> None:
        """Faults for what the settings name, and what has no tensors."""
        wrapped = {module.replace(_WRAPPED, "") for module in parts}
        for module, layer in self.modules.linear.items():
            if self.settings.means(module, layer) and module not in wrapped:
                self._tell(_MISSING, f"tensor '{module}.{_A}' is missing: target_modules names its module")
        for name in self.modules.seats if self.settings.parameters else ():
            if self.settings.parameters_of(_parent_of(name), [name]) and _parent_of(name) not in wrapped:
                self._tell(_MISSING, f"the tensors for '{name}' are missing: target_parameters names it")
        for saved in self.settings.saved:
            if not any(f".{saved}." in f".{name}." for name in self.changes):
                self._tell(_MISSING, f"the tensors of '{saved}' are missing: modules_to_save names it")


def _bare(name: str) -> str:
    """A name without what wraps the whole model."""
    while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _module_of(name: str) -> str:
    """What patterns are matched with: the module of a weight, or a bare parameter itself."""
    return name.removesuffix(".weight")


def _parent_of(name: str) -> str:
    return name.rpartition(".")[0]
