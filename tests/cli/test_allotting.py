"""Quants whose encodings are allotted, from the command line: measured, planned, written, and left as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.opening import open_graph
from support.drawn_statistics import draw_statistics, use_drawn


@pytest.fixture
def statistics(tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    drawn = draw_statistics(open_graph(tiny_dense), tmp_path / "statistics")
    use_drawn(monkeypatch, drawn)
    return drawn.folder


@pytest.mark.slow
def test_plans_show_what_other_sizes_would_buy(
    tiny_dense: Path, statistics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["plan", str(tiny_dense), "-t", "gguf", "-q", "auto", "--max-size", "500KB", "--statistics", str(statistics)]
    assert main(line) == 2
    assert f"calibrate MODEL --costs gguf -o {statistics} measures it" in capsys.readouterr().err
    assert main(["calibrate", str(tiny_dense), "--costs", "gguf", "-o", str(statistics), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"] == ["gguf"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "predicted KLD" in shown
    assert shown.count("chosen") == 1
    assert main([*line, "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    points = plan["tuned"]["bits"]["trade_off"]
    assert [point["bytes"] for point in points] == sorted(point["bytes"] for point in points)
    assert [point["predicted_kld"] for point in points] == sorted((p["predicted_kld"] for p in points), reverse=True)
    assert [point["bytes"] for point in points if point["chosen"]] == [plan["total_bytes"]]
    assert plan["quant"] == "auto-500KB" and plan["total_bytes"] <= 500_000


def test_conversion_measures_and_says_in_manifest_and_names(
    tiny_dense: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = [str(tiny_dense), "-t", "gguf,mlx", "-q", "Q4_0,4bit-g32", "--tune=bits", "--statistics", str(statistics)]
    line += ["--out", str(out), "--no-validate"]
    assert main(line) == 0, capsys.readouterr().err
    for target, quant in (("GGUF", "Q4_0-tuned"), ("MLX", "4bit-g32-tuned")):
        (folder,) = out.glob(f"*-{target}")
        (entry,) = json.loads((folder / "lfm-convert.json").read_text())["artifacts"]
        assert entry["quant"] == quant
        assert "-tuned-" in entry["main_file"]
        assert entry["tuned"]["texts"] == [{"name": "drawn.txt", "sha256": "7" * 64}]
        assert entry["options"]["statistics"] == "statistics"
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main([*line, "--skip-existing"]) == 0
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-q", "auto", "--statistics", "STATS"], "fills a size: give it, as --max-size 4.6GB or auto-4.6GB"),
        (["-q", "auto-10KB", "--statistics", "STATS"], "takes at least"),
        (["-q", "auto-1GB"], "--statistics FOLDER, as lfm-convert calibrate writes it"),
        (["-q", "F16", "--tune=bits", "--statistics", "STATS"], "nothing of F16 that could be stored otherwise"),
        (["-q", "Q4_0", "--statistics", "STATS"], "--statistics: tunes nothing without --tune"),
        (["-q", "all", "--tune", "--statistics", "STATS"], "name the quants whose bits are to be tuned"),
        (["-q", "Q4_0", "--tune=bytes"], "--tune=bytes: expected bits"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    words: list[str], said: str, tiny_dense: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(statistics) if word == "STATS" else word for word in words]
    assert main([str(tiny_dense), "-t", "gguf", *given, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (statistics / "costs").exists()
