from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.pipeline import plan
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.graph.errors import BudgetError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.validate.budgets import Budgets, DeviceClass
from lfm_convert.validate.memory import plan_run_bytes

RECIPE = """
[devices.phone]
max_size = "4.8GB"
max_memory = 5_000_000_000
context = 8192
targets = ["gguf"]

[devices.browser]
max_file_size = "2GiB"
"""


def test_device_classes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lfm-convert.toml"
    path.write_text(RECIPE)
    assert load_recipe(path).devices == {
        "phone": DeviceClass(
            name="phone", max_size=4_800_000_000, max_memory=5 * 10**9, context=8192, targets=("gguf",)
        ),
        "browser": DeviceClass(name="browser", max_file_size=2 << 30),
    }


def test_each_limit_holds_to_the_byte(moe_graph: WeightGraph) -> None:
    (each,) = plan(moe_graph, target="gguf", quant="Q4_0")
    size = each.total_bytes
    used = plan_run_bytes(moe_graph.config, each, 100)
    assert used > size

    def passed(**limits: int) -> list[bool]:
        device = DeviceClass(name="phone", context=100, targets=("gguf",), quants=("Q4_0",), **limits)
        return [check.passed for check in Budgets(devices=[device]).check_plan(moe_graph.config, each)]

    assert passed(max_size=size, max_file_size=size, max_memory=used) == [True, True, True]
    assert passed(max_size=size - 1, max_file_size=size - 1, max_memory=used - 1) == [False, False, False]


def test_a_device_class_is_about_its_own_artifacts(moe_graph: WeightGraph) -> None:
    (each,) = plan(moe_graph, target="gguf", quant="Q4_0")
    budgets = Budgets(devices=[DeviceClass(name="browser", max_size=1, targets=("onnx",))], max_file_size=1)
    (check,) = budgets.check_plan(moe_graph.config, each)
    assert (check.name, check.device) == ("file", "")
    with pytest.raises(BudgetError, match="is over the budget of 1 B"):
        budgets.refuse(moe_graph.config, [each])


def test_plan_says_what_is_over(
    tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lfm-convert.toml").write_text("[devices.watch]\nmax_memory = 1000\ncontext = 64\n")
    arguments = ["plan", str(tiny_moe), "--target", "gguf", "--quant", "F32,Q4_0"]
    assert main(arguments) == 0
    assert main([*arguments, "--device", "watch"]) == 4
    assert "64 tokens" in (out := capsys.readouterr().out) and "over the watch budget" in out
    assert main([*arguments, "--device", "tablet"]) == 2
    assert "no device class 'tablet': it has watch" in capsys.readouterr().err
    assert main([*arguments, "--max-size", "1GB"]) == 0
