"""A LoRA adapter as a file of its own, which llama.cpp adds to a GGUF of the base while it runs: `llama-cli --lora FILE`.

| tensor | shape, outermost first | what it is |
|---|---|---|
| `blk.N.attn_q.weight.lora_a` | [rank, in] | PEFT's A |
| `blk.N.attn_q.weight.lora_b` | [out, rank] | PEFT's B |
| of experts `….lora_a`, `….lora_b` | [experts, rank, in], [experts, out, rank] | those of each expert |
| `token_embd.weight.lora_a`, `….lora_b` | [vocabulary, rank], [hidden, rank] | an embedding's, A turned |

llama.cpp multiplies the product by alpha / rank, where the rank is the tensor's own and alpha one number of the file.
What a module has beyond that, such as rsLoRA's root or an alpha of its own, is multiplied into its B.
Source: llama.cpp `convert_lora_to_gguf.py`, `src/llama-adapter.cpp`, `src/llama-graph.cpp`, `build_lora_mm`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...graph.adapters.changes import Added, Product
from ...graph.adapters.merging import Read
from ...graph.adapters.modules import Modules
from ...graph.dtypes import Float32
from ...graph.errors import Faults, InputError
from ...graph.families.places import Seat
from ...graph.graph import WeightGraph
from ...graph.roles import Address, Role, Trait
from ...quantize.encoding import get_encoding
from ...quantize.gguf_file.header import KeyValue, TensorInfo, aligned, float32, header_bytes, string, uint32
from ...quantize.gguf_file.tensor_names import held_together, tensor_name
from ...quantize.policies.gguf import FILE_TYPES
from .metadata import architecture
from .rows import n_heads_moved, paired_rows

# What its tensors may be stored in: a rank is rarely a multiple of a block.
TYPES = ("F16", "BF16", "F32")
_WORDS = {
    "Decomposed": "is changed by DoRA",
    "DecomposedTable": "is changed by DoRA",
    "ReplacedRows": "has trained tokens",
    "AddedBias": "is a bias that is changed",
    "Replaced": "is replaced",
}


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The factors of one weight: of a stack `n` of each, in `own` by the rows that they belong to.

    Of a matrix that a file keeps with others `own` are the rows of all of them; `n_heads` is given of one whose rows the
    file has in the order in which they turn.
    """

    name: str
    own: Sequence[tuple[Seat, Product]]
    n: int
    alpha: float
    n_heads: int | None = None

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the file's `lora_a` and `lora_b`."""
        seat, product = self.own[0]
        if product.left_is_turned:
            return (seat.shape[0], product.rank), product.right.shape
        n_out = seat.count if seat.n_blocks > 1 or len(seat.shape) == 2 else seat.shape[-2]
        if self.n == 1:
            n_out = sum(each.count for each, _ in self.own)
        a, b = (product.rank, seat.shape[-1]), (n_out, product.rank)
        return (a, b) if self.n == 1 else ((self.n, *a), (self.n, *b))

    def values(self) -> tuple[Float32, Float32]:
        product = self.own[0][1]
        if product.left_is_turned:
            return product.left.read().T * self._surplus(product), product.right.read()
        a, b = (np.zeros(shape, np.float32) for shape in self.shapes())
        if self.n == 1:
            left = product.left.read()
            whole = np.concatenate([left[each.offset : each.offset + each.count] for each, _ in self.own])
            moved = whole if self.n_heads is None else paired_rows(whole, self.n_heads)
            return product.right.read(), moved * self._surplus(product)
        for seat, each in self.own:
            left, right = each.left.read(), each.right.read()
            rows = slice(seat.offset, seat.offset + b.shape[1])
            for index in range(each.n_stacked):
                place = seat.first // seat.count if each.n_stacked == 1 else index
                a[place] = right[index * each.rank : (index + 1) * each.rank]
                b[place] = left.reshape(len(left), each.rank, each.n_stacked)[rows, :, index] * self._surplus(each)
        return a, b

    def _surplus(self, product: Product) -> np.float32:
        """What llama.cpp does not multiply by itself."""
        return np.float32(product.scale * product.rank / self.alpha)


@dataclass(frozen=True)
class LoraFile:
    """What the file holds; nothing is read yet."""

    pairs: tuple[KeyValue, ...]
    weights: tuple[_Pair, ...]
    encoding: str

    def write(self, path: Path) -> int:
        """Writes the file; gives its bytes. Raises: OSError; InputError for a value that its type cannot hold."""
        encoding, offset, infos = get_encoding(self.encoding), 0, list[TensorInfo]()
        for weight in self.weights:
            for part, shape in zip("ab", weight.shapes(), strict=True):
                infos.append(TensorInfo(f"{weight.name}.lora_{part}", shape, encoding.stored_name, offset))
                offset += aligned(int(np.prod(shape[:-1])) * encoding.row_nbytes(shape[-1]))
        with path.open("wb") as file:
            file.write(header_bytes(self.pairs, infos))
            for weight in self.weights:
                for data in self._encoded(weight):
                    file.write(data.ljust(aligned(len(data)), b"\0"))
            return file.tell()

    def _encoded(self, weight: _Pair) -> Iterator[bytes]:
        encoding = get_encoding(self.encoding)
        for values in weight.values():
            matrix = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
            parts = encoding.encode(matrix)
            if not np.isfinite(encoding.decode(*parts)).all():
                raise InputError(f"'{weight.name}': the adapter overflows {self.encoding}: choose another type")
            (stored,) = parts
            yield stored.tobytes()


def lora_file(graph: WeightGraph, read: Read, *, encoding: str) -> LoraFile:
    """An adapter as llama.cpp takes it; `graph` is the base.

    Raises: InputError with everything of the adapter that such a file cannot say.
    """
    faults, modules = Faults(), Modules(graph)
    placed: dict[Address, list[tuple[Seat, Product]]] = defaultdict(list)
    unsaid: list[str] = []
    for name, changes in read.changes.items():
        for change in changes:
            if isinstance(change, Added):
                for address, seat in modules.seats[name]:
                    placed[address].append((seat, change.product))
            else:
                unsaid.append(
                    f"'{name}' {_WORDS[type(change).__name__]}, which llama.cpp's adapters cannot say: merge it"
                )
    faults.add_alike(unsaid, "tensors are changed in a way that llama.cpp's adapters cannot say")
    if (Role.LM_HEAD, None) in placed and graph.is_tied:
        faults.add("the head is changed, which is no tensor of its own in the file of a tied model: merge the adapter")
    if not read.settings.alpha:
        faults.add("lora_alpha is 0: the adapter changes nothing")
    pairs = tuple(_pairs(graph, placed, read.settings.alpha, faults))
    faults.raise_if_any(str(read.adapter.folder))
    return LoraFile(
        (
            string("general.architecture", architecture(graph.config)),
            string("general.type", "adapter"),
            string("adapter.type", "lora"),
            string("general.name", read.adapter.name),
            float32("adapter.lora.alpha", read.settings.alpha),
            uint32("general.file_type", FILE_TYPES[encoding]),
            uint32("general.quantization_version", 2),
        ),
        pairs,
        encoding,
    )


def _pairs(
    graph: WeightGraph, placed: dict[Address, list[tuple[Seat, Product]]], alpha: float, faults: Faults
) -> Iterator[_Pair]:
    family = graph.config.family
    for address, own in sorted(placed.items(), key=lambda item: (item[0][1] or 0, item[0][0].value)):
        first, *others = held_together(address[0], family)
        if address[0] is not first:
            continue
        own = [*own, *(each for role in others for each in placed[role, address[1]])]
        name = tensor_name(address, family)
        if len({product.rank for _, product in own}) > 1:
            faults.add(f"'{name}' has experts of several ranks, which are one tensor in the file")
        is_stack = address[0].trait is Trait.EXPERTS
        n = next(weight for weight in graph.weights() if weight.address == address).shape[0] if is_stack else 1
        yield _Pair(name=name, own=own, n=n, alpha=alpha, n_heads=n_heads_moved(graph.config, *address))
