"""What the runners show the validator beyond one conversation, in the real runtimes, on float artifacts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.source.chat import render_chats
from lfm_convert.targets.target import get_target
from lfm_convert.validate.experts import agreement, routed
from lfm_convert.validate.probes import check_cache
from lfm_convert.validate.suites import choose_prompts
from support.artifacts import write_artifact

FIRST, SECOND = tuple(range(20, 50)), tuple(range(100, 121))
WAYS = {"gguf": ("F32", ["together"]), "onnx": ("fp32", ["left", "right"]), "mlx": ("bf16", ["left"])}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_the_same_logits_and_the_experts_are_the_graphs(
    name: str, moe_graph: WeightGraph, tmp_path: Path
) -> None:
    target = get_target(name)
    if (missing := target.missing()) is not None:
        pytest.skip(f"{name} is not installed: {missing}")
    quant, ways = WAYS[name]
    artifact = write_artifact(moe_graph, name, quant, tmp_path)
    forward = Forward(moe_graph)
    with closing(target.run(artifact, threads=1)) as runner:
        found = check_cache(runner, (FIRST, SECOND), [runner.logits(ids) for ids in (FIRST, SECOND)])
        chosen = [runner.experts(ids) for ids in (FIRST, SECOND)]
        again = runner.logits(FIRST)
        with runner.watching() as seen:
            watched = runner.logits(FIRST)
            in_passing = seen(len(FIRST))
    assert found is not None and found.not_seen == ()
    names = ["stepwise", "chunked", "interleaved", "reset", *(f"batch_{way}" for way in ways)]
    assert [probe.name for probe in found.probes] == names
    assert all(probe.kld < 1e-9 and probe.max_abs < 1e-4 for probe in found.probes)
    for ids, seen in zip((FIRST, SECOND), chosen, strict=True):
        forward.prefill([ids])
        assert seen is not None and agreement(routed(forward), seen) == {1: 1.0, 2: 1.0, 3: 1.0}
    assert again.shape == (len(FIRST), 512)
    assert np.array_equal(watched, again)
    assert in_passing is None or all(np.array_equal(in_passing[layer], chosen[0][layer]) for layer in chosen[0])
    assert (in_passing is None) == (name == "onnx")


def test_a_dense_model_shows_no_experts(dense_graph: WeightGraph, tmp_path: Path) -> None:
    artifact = write_artifact(dense_graph, "onnx", "fp32", tmp_path)
    with closing(get_target("onnx").run(artifact, threads=1)) as runner:
        assert runner.experts(FIRST) is None


def test_llama_cpp_writes_chats_as_the_checkpoint_does(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    graph = open_graph(bundled.path("dense"))
    artifact = write_artifact(graph, "gguf", "Q4_0", tmp_path)
    template, special = graph.assets.chat_template, graph.assets.special_tokens
    bos = special["bos_token"]
    assert template is not None
    prompts = [p for p in choose_prompts(None) if p.messages]
    with closing(get_target("gguf").run(artifact, threads=1)) as runner:
        assert runner.templates() == {"default": template}
        plain = [p.messages for p in prompts if not p.tools]
        rendered = render_chats(template, plain, special_tokens=special)
        assert runner.render(plain, ()) == [text.removeprefix(bos) for text in rendered]
        offered = next(p for p in prompts if p.tools and "type" in p.tools[0])
        (text,) = render_chats(template, [offered.messages], special_tokens=special, tools=offered.tools)
        assert runner.render([offered.messages], offered.tools) == [text.removeprefix(bos)]
        assert runner.render(plain[:1], [{"name": "bare"}]) is None  # not what the server's API takes
