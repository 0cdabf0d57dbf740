"""A recipe is understood whole, or refused with its file and what is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.graph.errors import InputError
from lfm_convert.validate.lines import Lines
from lfm_convert.validate.recipe import load_recipe


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[devices.a]", "'a' sets no limit"),
        ("[devices.a]\nmax_siez = 1", "unknown key 'max_siez'"),
        ("[devices.a]\nmax_size = 'big'", "size 'big' is not understood"),
        ("[devices.a]\nmax_size = 1\ncontext = 0", "context is 0"),
        ("[devices.a]\nmax_size = 1\ntargets = 'gguf'", "not a list of names"),
        ("devices = 3", "no table"),
        ("[devices.a", "as TOML"),
        ("[gates]\nmax_kdl = 1", "unknown key 'max_kdl'"),
        ("[gates.Q4_0]\nmax_kld = true", r"\[gates.Q4_0\]: max_kld is True: expected a number"),
        ("[gates]\nmax_kld = 1" + 400 * "0", "max_kld is too large"),
        ("[gates]\nmax_kld = '10%'", "max_kld is '10%': expected a number"),
        ("[gates.Q9_9]\nmax_kld = 1", "no target has a quant 'Q9_9'"),
        ("[gates.Q4_0]", r"\[gates.Q4_0\] sets no line"),
        ("[gate]\nmax_kld = 1", "found 'gate'"),
        ("[gates]\nmin_top1 = 90", "--min-top1 is 90"),
        ("[gates]\nmin_top1 = 'most'", "no fraction"),
        ("gates = 3", r"\[gates\] is no table"),
        ("[gates", "as TOML"),
    ],
)
def test_what_is_malformed_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=part) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_lines_of_a_recipe_of_its_quants_and_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[gates]\nmax_kld = 0.1\nmin_top1 = "80%"\n[gates.q8_0]\nmax_kld = 0.01\n')
    lines = load_recipe(path).lines
    assert lines.of("Q4_0") == Lines(max_kld=0.1, min_top1=0.8)
    assert lines.of("Q8_0") == Lines(max_kld=0.01, min_top1=0.8)
    asked = lines.replaced_by(Lines(max_kld=1.0))
    assert asked.of("Q8_0") == asked.of("Q4_0") == Lines(max_kld=1.0, min_top1=0.8)
