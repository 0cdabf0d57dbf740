"""Plans whose encodings are allotted, for every target: their size, what is stored alike, and what is refused."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.progress import Progress
from lfm_convert.graph.roles import EXPERTS, Role
from lfm_convert.quantize.allotment.wanted import Wanted, read_wanted
from lfm_convert.quantize.policy import PRODUCTS
from lfm_convert.targets.allotting import measure_costs
from lfm_convert.targets.candidates import Alike, candidates
from lfm_convert.targets.lossy import planned
from lfm_convert.targets.plans import Plan
from lfm_convert.targets.target import Artifact, Target, get_target, target_names
from support.artifacts import write_artifact
from support.drawn_statistics import DrawnStatistics, draw_statistics, use_drawn

BASES = {
    "gguf": "Q4_0", "onnx": "q4f16", "mlx": "4bit-g32", "executorch": "8da4w", "coreml": "int4",
    "compressed-tensors": "W4A16-g32",
}  # fmt: skip
SIMPLE = ("gguf", "mlx")


def test_every_target_is_asked() -> None:
    assert set(BASES) == set(target_names())


def _ready(
    graph: WeightGraph, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Target, DrawnStatistics]:
    drawn = draw_statistics(graph, folder)
    use_drawn(monkeypatch, drawn)
    target = get_target(name).with_options({"statistics": str(folder), **options})
    for quant in (f"{target.base_of('auto-1GB')}-tuned", f"{BASES[name]}-tuned"):
        wanted = read_wanted(quant)
        assert wanted is not None
        measure_costs(target, graph, wanted, jobs=2)
    return target, drawn


@pytest.fixture(params=["dense_graph", "moe_graph"])
def graph(request: pytest.FixtureRequest) -> WeightGraph:
    found: WeightGraph = request.getfixturevalue(request.param)
    return found


def test_a_table_that_is_stored_twice_costs_each_use_once(
    dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ExecuTorch stores a tied table for lookups and for the head; in GGUF one copy has both uses."""
    costs = {}
    for name in ("executorch", "gguf"):
        target, _ = _ready(dense_graph, name, tmp_path / name, monkeypatch)
        wanted = read_wanted(f"{BASES[name]}-tuned")
        assert wanted is not None
        kept = measure_costs(target, dense_graph, wanted)
        costs[name] = {
            key: each for key, each in kept.losses.items() if key in ("token_embd", "output", "embed", "lm_head")
        }
    assert len(costs["executorch"]) == 2 and len(costs["gguf"]) == 1
    table, head = costs["executorch"].values()
    for encoding in set(table) & set(head):
        assert table[encoding] == pytest.approx(head[encoding])  # half of the gradients are drawn for each


@pytest.mark.parametrize("name", target_names())
def test_sizes_are_filled_and_never_passed(
    name: str, graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(graph, name, tmp_path, monkeypatch)
    base = target.plan(graph, target.auto_base)
    alikes = candidates(target, graph, base)
    fixed = base.total_bytes - sum(alike.sizes[alike.planned] for alike in alikes)
    least, most = (fixed + sum(extreme(alike.sizes) for alike in alikes) for extreme in (min, max))
    before = np.inf
    for share in (0.2, 0.4, 0.6, 0.8, 0.97):
        budget = int(least + share * (most - least))
        plan = planned(target, graph, f"auto-{budget}B")
        assert plan.total_bytes <= budget
        spare = budget - plan.total_bytes - int((target.size_error + 0.01) * budget)
        assert spare < 0 or not any(step <= spare for step in _steps_up(alikes, plan))
        assert plan.quant == Wanted(max_bytes=budget).name
        loss = plan.tuned["bits"]["predicted_kld"]
        assert loss < before
        before = loss


def _steps_up(alikes: Sequence[Alike], plan: Plan) -> Iterator[int]:
    """What the next larger choice of each group would take."""
    chosen = {(tensor.role, tensor.layer): tensor.encoding.name for tensor in plan.tensors}
    for alike in alikes:
        names = [encoding.name for encoding in alike.encodings]
        size = alike.sizes[names.index(chosen[alike.addresses[0]])]
        yield from (larger - size for larger in alike.sizes if larger > size)


@pytest.mark.parametrize("name", target_names())
def test_at_a_named_quants_size_nothing_is_predicted_to_be_worse(
    name: str, graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, drawn = _ready(graph, name, tmp_path, monkeypatch)
    base = target.plan(graph, BASES[name])
    plan = planned(target, graph, f"{BASES[name]}-tuned")
    told = plan.tuned["bits"]
    assert (plan.quant, plan.class_name) == (f"{BASES[name]}-tuned", base.class_name)
    assert "tuned" in plan.main_file
    assert plan.total_bytes <= base.total_bytes + 2000  # names of files are longer
    assert told["predicted_kld"] <= told["predicted_kld_of_base"]
    assert plan.tuned["statistics_sha256"] == drawn.sha256
    assert plan.tuned["texts"] == [{"name": "drawn.txt", "sha256": "7" * 64}]
    assert json.loads(json.dumps(plan.to_json()))["tuned"]["bits"]["base"] == BASES[name]
    assert [point["bytes"] for point in told["trade_off"] if point["chosen"]] == [plan.total_bytes]


def _together(plan: Plan, roles: frozenset[Role]) -> list[set[str]]:
    found: dict[int | None, set[str]] = defaultdict(set)
    for tensor in plan.tensors:
        if tensor.role in roles:
            found[tensor.layer].add(tensor.encoding.name)
    return list(found.values())


@pytest.mark.parametrize("name", ["onnx", "compressed-tensors"])
def test_what_a_runtime_multiplies_by_at_once_is_stored_alike(
    name: str, moe_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(moe_graph, name, tmp_path, monkeypatch)
    least, most = (point["bytes"] for point in _ends(target, moe_graph))
    for share in (0.1, 0.2):
        plan = planned(target, moe_graph, f"auto-{int(least + share * (most - least))}B")
        assert len({tensor.encoding.name for tensor in plan.tensors}) > 3
        for roles in PRODUCTS:
            assert all(len(names) == 1 for names in _together(plan, roles))
        if name == "compressed-tensors":
            assert len(set.union(*_together(plan, EXPERTS))) == 1


def _ends(target: Target, graph: WeightGraph) -> Sequence[dict[str, Any]]:
    told = planned(target, graph, f"{target.auto_base}-tuned").tuned["bits"]["trade_off"]
    return told[0], told[-1]


def test_qmoe_has_experts_of_a_layer_in_one_width(
    moe_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(moe_graph, "onnx", tmp_path, monkeypatch, onnx_moe="qmoe")
    alike = [
        each
        for each in candidates(target, moe_graph, target.plan(moe_graph, "q4f16"))
        if each.addresses[0][0] in EXPERTS
    ]
    assert [{role for role, _ in each.addresses} for each in alike] == [EXPERTS] * 3
    assert {encoding.name for each in alike for encoding in each.encodings} == {"int4_block32_f16", "int8_block32_f16"}


@pytest.mark.parametrize("name", SIMPLE)
def test_too_little_room_is_said_with_the_least(
    name: str, dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(dense_graph, name, tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=r"takes at least .* bytes\), with every weight in its smallest") as error:
        planned(target, dense_graph, "auto-10KB")
    least = int(str(error.value).split("(")[1].split(" ")[0])
    for more, fits in ((64, True), (-64, False)):  # a longer name takes a few bytes
        with nullcontext() if fits else pytest.raises(UsageError, match="takes at least"):
            assert planned(target, dense_graph, f"auto-{least + more}B").total_bytes <= least + more


@pytest.mark.parametrize("name", SIMPLE)
def test_more_room_than_there_is_use_for_gets_the_best(
    name: str, dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(dense_graph, name, tmp_path, monkeypatch)
    plan = planned(target, dense_graph, "auto-1GB")
    assert {tensor.encoding.class_name for tensor in plan.tensors if tensor.role is Role.FFN_UP} == {"f16"}
    assert plan.tuned["bits"]["predicted_kld"] < 1e-6


def test_what_is_missing_is_said(dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target("gguf")
    with pytest.raises(UsageError, match="--statistics FOLDER, as lfm-convert calibrate writes it"):
        planned(target, dense_graph, "auto-1GB")
    use_drawn(monkeypatch, draw_statistics(dense_graph, tmp_path))
    known = target.with_options({"statistics": str(tmp_path)})
    with pytest.raises(UsageError, match=r"calibrate MODEL --costs gguf -o .* measures it"):
        planned(known, dense_graph, "auto-1GB")
    with pytest.raises(UsageError, match="nothing of F16 that could be stored otherwise"):
        planned(known, dense_graph, "F16-tuned")
    with pytest.raises(UsageError, match="unknown quant 'Q9'"):
        known.named("Q9-tuned")
    with pytest.raises(UsageError, match="have an importance of their own"):
        planned(known.with_options({"imatrix": "other.gguf"}), dense_graph, "auto-1GB")


def test_an_interrupted_measurement_goes_on_where_it_stopped(
    dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_drawn(monkeypatch, draw_statistics(dense_graph, tmp_path))
    target, wanted = get_target("mlx").with_options({"statistics": str(tmp_path)}), Wanted(max_bytes=10**9)
    done: list[int] = []

    def stop(n_bytes: int) -> None:
        done.append(n_bytes)
        if len(done) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_costs(target, dense_graph, wanted, progress=Progress(advance=stop))
    left: list[int] = []
    measure_costs(target, dense_graph, wanted, progress=Progress(advance=left.append))
    again: list[int] = []
    measure_costs(target, dense_graph, wanted, progress=Progress(advance=again.append))
    assert 0 < sum(left) < sum(weight.view.nbytes for weight in dense_graph.weights()) - sum(done) // 2
    assert not again


def test_types_that_options_name_stay(
    dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"tensor_type": ("ffn_up=Q5_0",), "token_embedding_type": "Q8_0"}
    target, _ = _ready(dense_graph, "gguf", tmp_path, monkeypatch, **asked)
    plan = planned(target, dense_graph, "auto-520KB")
    by_role: dict[Any, set[str]] = defaultdict(set)
    for tensor in plan.tensors:
        by_role[tensor.role].add(tensor.encoding.name)
    assert (by_role[Role.FFN_UP], by_role[Role.EMBED]) == ({"Q5_0"}, {"Q8_0"})
    assert len(by_role[Role.FFN_DOWN] | by_role[Role.CONV_IN] | by_role[Role.FFN_GATE]) > 1
    with pytest.raises(UsageError, match="could be stored otherwise"):
        planned(target.with_options({"pure": True}), dense_graph, "auto-420KB")


def test_refined_encoders_are_those_whose_costs_are_asked_for(
    dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(dense_graph, "mlx", tmp_path, monkeypatch, refine=True)
    plan = planned(target, dense_graph, "4bit-g32-tuned")
    packed = [tensor for tensor in plan.tensors if tensor.role is Role.FFN_UP]
    assert all(tensor.encoding.is_refined and tensor.importance is not None for tensor in packed)
    assert plan.main_file.split("/")[0].endswith("-tuned-4bit-g32-refined")


@pytest.mark.parametrize("name", ["gguf", "mlx", "onnx", "coreml", "compressed-tensors"])
def test_what_is_written_is_read_back_as_it_was_allotted(
    name: str, moe_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = _ready(moe_graph, name, tmp_path / "statistics", monkeypatch)
    told = _ends(target, moe_graph)
    quant = f"auto-{(2 * told[0]['bytes'] + told[1]['bytes']) // 3}B"
    plan = planned(target, moe_graph, quant)
    artifact = _written(target, moe_graph, plan, tmp_path / "out")
    stored = target.read(artifact)
    for weight in moe_graph.weights():
        tensors = [t for t in plan.tensors if (t.role, t.layer) == weight.address]
        n = min(8, weight.view.n_rows, tensors[0].view.n_rows)
        if tensors[0].view.n_cols != weight.view.n_cols:  # Core ML has kernels the other way round
            continue
        expected = tensors[0].encoding.decode(*_encoded(tensors[0], n))
        assert np.array_equal(stored[weight.address].rows(0, n), expected), weight.address


def _encoded(tensor: Any, n: int) -> Any:
    weights = None if tensor.importance is None else tensor.importance[0]
    return tensor.encoding.encode(tensor.view.rows(0, n), weights)


def _written(target: Target, graph: WeightGraph, plan: Plan, folder: Path) -> Artifact:
    class Planned(type(target)):  # type: ignore[misc]
        def plan(self, graph: WeightGraph, quant: str) -> Plan:
            return plan

    found = write_artifact(graph, Planned(), plan.quant, folder)
    tensors = [
        {
            **entry,
            "parts": [{"path": place.path, "offset": place.offset} for place in tensor.placements],
        }
        for tensor, entry in zip(plan.tensors, plan.to_json()["tensors"], strict=True)
    ]
    return replace(found, entry={"tensors": tensors, "layout": 1, "options": {}})
