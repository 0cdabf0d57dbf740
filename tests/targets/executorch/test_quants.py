"""A quant's name is a word of a grammar: what it means, which are the same, which are none; rows that do not fit one."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import MATRICES, Role
from lfm_convert.quantize.policies.executorch import GRAMMAR, POLICIES
from lfm_convert.targets.target import get_target
from support.checkpoints import dense_config, make_checkpoint
from support.refusals import refused

TARGET = get_target("executorch")
UNKNOWN = ("4bit", "fp32-emb8", "8da4w-g48", "8da8w-g64", "8da4w-emb8-emb4", "8da4w-", "8da4w\n", "")


@pytest.mark.parametrize(
    ("quant", "name", "matrices", "table"),
    [
        ("8da4w-g32-emb4", "8da4w", "et_int4_g32", "et_embed4_g32"),
        ("8DA4W-G64-EMB4", "8da4w-g64", "et_int4_g64", "et_embed4_g32"),
        ("8da4w-g128-emb8", "8da4w-g128-emb8", "et_int4_g128", "et_embed8"),
        ("8da8w-emb8", "8da8w", "et_int8", "et_embed8"),
        ("8da8w-emb4", "8da8w-emb4", "et_int8", "et_embed4_g32"),
    ],
)
def test_a_quant_is_put_together(quant: str, name: str, matrices: str, table: str, dense_graph: WeightGraph) -> None:
    plan = TARGET.plan(dense_graph, quant)
    assert plan.quant == name
    assert {tensor.encoding.name for tensor in plan.tensors if tensor.role in MATRICES} == {matrices}
    assert {tensor.encoding.name for tensor in plan.tensors if tensor.role is Role.EMBED} == {table}


@pytest.mark.parametrize("quant", UNKNOWN)
def test_a_quant_that_is_none(quant: str, dense_graph: WeightGraph) -> None:
    with refused(f"unknown quant '{quant}' for target executorch", f"expected {GRAMMAR}", error=UsageError):
        TARGET.plan(dense_graph, quant)


def test_the_sentence_tells_every_word() -> None:
    """What can be read off it is taken, and is all that there is: widths, three groups, two tables."""
    terms = [re.split(r"\[(.*?)\]", term) for term in re.split(", | or ", GRAMMAR)]
    choices = [[part.split("|") if i % 2 else part for i, part in enumerate(term) if part] for term in terms]
    words = [
        "".join(word)
        for term in choices
        for word in itertools.product(*(["", *part] if isinstance(part, list) else [part] for part in term))
    ]
    assert len(words) == 1 + 3 + 4 * 3
    names = {TARGET.policy(word).name for word in words}
    assert len(names) == 1 + 2 + 3 * 2 and names > {policy.name for policy in POLICIES}


def test_the_command_line_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    grammars = {each["target"]: each["grammar"] for each in json.loads(capsys.readouterr().out)["targets"]}
    assert grammars["executorch"] == GRAMMAR
    assert main(["targets"]) == 0
    assert f"executorch takes {GRAMMAR}." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("quant", "bits"), [("8da4w", 4.5), ("8da4w-g64", 4.25), ("8da4w-g128-emb8", 4.125)])
def test_bits_of_a_weight(quant: str, bits: float, dense_graph: WeightGraph) -> None:
    matrices = [tensor for tensor in TARGET.plan(dense_graph, quant).tensors if tensor.role in MATRICES]
    assert {8 * tensor.nbytes / math.prod(tensor.shape) for tensor in matrices} == {bits}


def test_rows_that_groups_do_not_divide(tmp_path: Path) -> None:
    config = dense_config(hidden_size=144, num_attention_heads=4, num_key_value_heads=2)
    plan = TARGET.plan(open_graph(make_checkpoint(tmp_path, config)), "8da4w")
    assert {f.used for f in plan.fallbacks} == {"et_int8", "et_embed8"}
    with pytest.raises(UsageError, match="rows of 144 are not a multiple of the block of 32"):
        plan.refuse_fallbacks()


def test_smaller_groups_where_larger_do_not_divide(tmp_path: Path) -> None:
    """Rows of 192 come in groups of 64, those of 256 as asked."""
    graph = open_graph(make_checkpoint(tmp_path, dense_config(hidden_size=192, num_attention_heads=4)))
    plan = TARGET.plan(graph, "8da4w-g128")
    used = {tensor.shape[-1]: tensor.encoding.name for tensor in plan.tensors if tensor.role in MATRICES}
    assert used == {192: "et_int4_g64", 256: "et_int4_g128"}
    assert {(f.wanted, f.used) for f in plan.fallbacks} == {("et_int4_g128", "et_int4_g64")}
    with pytest.raises(UsageError, match=r"as et_int4_g64 instead of et_int4_g128 .rows of 192 are not a multiple"):
        plan.refuse_fallbacks()
