"""A quant's name is a word of a grammar: what each part means, which are the same, and which are none."""

from __future__ import annotations

import itertools
import json

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.roles import Role, Trait
from lfm_convert.graph.tensor import DeclaredTensor
from lfm_convert.quantize.policies.mlx import GRAMMAR, POLICIES, mlx_policy, parse_quant
from lfm_convert.targets.target import get_target
from support.refusals import refused

# Name -> encodings of most matrices, of those the mixture widens, of the embedding; and the class of its gates.
MEANINGS = {
    "8bit": ("affine8_g64", "affine8_g64", "affine8_g64", "q8"),
    "2bit": ("affine2_g64", "affine2_g64", "affine2_g64", "q3"),
    "4bit-g32-e6": ("affine4_g32", "affine4_g32", "affine6_g32", "q4"),
    "5bit-e6": ("affine5_g64", "affine5_g64", "affine6_g64", "q5"),
    "8bit-e4": ("affine8_g64", "affine8_g64", "affine4_g64", "q4"),
    "3bit-g128-e5": ("affine3_g128", "affine3_g128", "affine5_g128", "q3"),
    "mixed_4_8": ("affine4_g64", "affine8_g64", "affine8_g64", "q4"),
    "mixed_4_8-g32-e6": ("affine4_g32", "affine8_g32", "affine6_g32", "q4"),
    "mxfp4-e8": ("mxfp4", "mxfp4", "affine8_g64", "q4"),
    "mxfp8": ("mxfp8", "mxfp8", "mxfp8", "q5"),
    "nvfp4-e6": ("nvfp4", "nvfp4", "affine6_g64", "q4"),
}
SAME = {
    "8BIT": "8bit", "4bit-g64": "4bit", "4bit-e4": "4bit", "4bit-g32-e4": "4bit-g32", "mixed_4_8-e8": "mixed_4_8",
    "NVFP4-E8": "nvfp4-e8", "Mixed_4_8": "mixed_4_8", "BF16": "bf16", "mxfp4-e4": "mxfp4-e4",
}  # fmt: skip
UNKNOWN = (
    "7bit", "1bit", "bit", "44bit", "4bit-g16", "4bit-e3", "4bit-e6-g32", "4bit-g32-g32", "4bit-", "mxfp4-g32",
    "mxfp6", "bf16-e8", "bf16-g32", "mixed_2_6", "q4", "4bit e6", "4bit-e6\n", "",
)  # fmt: skip


def encoding_of(name: str, role: Role) -> str:
    """What a quant stores a weight of rows of 256 as."""
    weight = Weight(role, 0, DeclaredTensor("weight", (256, 256), DType.BF16))
    return mlx_policy(parse_quant(name), DType.BF16).choose(weight).encoding.name


@pytest.mark.parametrize("name", MEANINGS)
def test_meanings(name: str) -> None:
    matrices, sensitive, table, class_name = MEANINGS[name]
    assert encoding_of(name, Role.FFN_UP) == matrices + "_bf16"
    assert encoding_of(name, Role.ATTN_V) == sensitive + "_bf16"
    assert encoding_of(name, Role.EMBED) == encoding_of(name, Role.LM_HEAD) == table + "_bf16"
    assert (parse_quant(name).name, parse_quant(name).class_name) == (name, class_name)


@pytest.mark.parametrize("name", [*MEANINGS, "bf16"])
def test_roles_of_a_kind_are_stored_alike(name: str) -> None:
    """Whatever roles there will be: a table of them would miss the next."""
    packed = {Trait.MATRIX, Trait.EXPERTS, Trait.TABLE, Trait.HEAD, Trait.ROUTER}
    for role in Role:
        encoding = encoding_of(name, role)
        if role.trait not in packed or name == "bf16":
            assert encoding == "BF16", role
        elif role.trait is Trait.ROUTER:
            assert encoding == "affine8_g64_bf16"
        else:
            assert encoding.removesuffix("_bf16") in MEANINGS[name][:3], role


@pytest.mark.parametrize("name", SAME)
def test_names_of_the_same(name: str) -> None:
    assert get_target("mlx").policy(name).name == SAME[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(name: str) -> None:
    with refused(f"unknown quant '{name}' for target mlx", f"expected {GRAMMAR}", error=UsageError):
        get_target("mlx").policy(name)


def test_the_sentence_tells_every_word() -> None:
    """Each part by itself, and all that can be put together."""
    codes = [*(f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)), "mixed_4_8"]
    groups, tables = ("-g32", "-g64", "-g128"), ("-e4", "-e5", "-e6", "-e8")
    floats = ("mxfp4", "mxfp8", "nvfp4")
    for part in (*codes, *groups, *tables, *floats, "bf16"):
        assert part in GRAMMAR
    words = [*itertools.product(codes, ("", *groups), ("", *tables)), *itertools.product(floats, ("", *tables))]
    names = {parse_quant("".join(parts)).name for parts in words}
    # of each the groups, times the embedding's bits: all but its own, or as many as there are and none said
    assert len(names) == 4 * 3 * 4 + 2 * 3 * 5 + 1 * 3 * 4 + 3 * 1 * 5


def test_common_names_are_words_of_it() -> None:
    assert [parse_quant(policy.name).name for policy in POLICIES] == [policy.name for policy in POLICIES]
    assert POLICIES[0].name == get_target("mlx").default_quant


def test_the_command_line_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    grammars = {each["target"]: each["grammar"] for each in json.loads(capsys.readouterr().out)["targets"]}
    assert grammars["mlx"] == GRAMMAR
    assert main(["targets"]) == 0
    assert f"mlx takes {GRAMMAR}." in " ".join(capsys.readouterr().out.split())


def test_planned_with_its_own_settings(moe_graph: WeightGraph) -> None:
    plan = get_target("mlx").plan(moe_graph, "4BIT-g32-e6")
    assert plan.main_file == "tiny-moe-4bit-g32-e6/config.json"
    settings = json.loads(plan.details["config.json"])["quantization"]
    assert (settings["bits"], settings["group_size"], settings["mode"]) == (4, 32, "affine")
    assert settings["model.embed_tokens"] == {"group_size": 32, "bits": 6, "mode": "affine"}
    assert settings["model.layers.1.feed_forward.gate"] == {"group_size": 64, "bits": 8, "mode": "affine"}
