"""An artifact's free-running text against what the checkpoint would say at each place of it."""

from __future__ import annotations

from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.validate.greedy import Choices, choices, compare_greedy
from lfm_convert.validate.prompts import EncodedPrompt, Prompt
from lfm_convert.validate.results import Continuation, GreedyCheck


def _compare(chosen: tuple[int, ...], tokens: tuple[int, ...]) -> GreedyCheck:
    gaps = tuple(0.25 * i for i in range(len(chosen)))
    prompt = EncodedPrompt("one", (1, 2))
    return compare_greedy([prompt], [Choices(chosen, gaps)], [tokens], lambda ids: "".join(map(str, ids)))


def test_texts_are_compared_up_to_the_first_difference() -> None:
    found = _compare((5, 6, 7, 8), (5, 6, 9, 8))
    assert (found.n_exact, found.prefix_match, found.gap_at_divergence) == (0, 0.5, 0.5)
    assert found.continuations == (Continuation("one", "12", "56", "7", "98", 0.5),)
    same = _compare((5, 7), (5, 7))
    assert (same.n_exact, same.prefix_match, same.gap_at_divergence) == (1, 1.0, None)
    assert same.continuations == (Continuation("one", "12", "57", "", "", None),)


def test_one_pass_gives_what_a_free_run_says(dense_graph: WeightGraph, prompts: tuple[Prompt, ...]) -> None:
    """Of its own text; and of another's, what it says after the same beginning."""
    forward = Forward(dense_graph)
    starts = [prompt.ids for prompt in prompts[:4]]
    free = [forward.generate(ids, max_new_tokens=6) for ids in starts]
    assert [list(each.tokens) for each in choices(forward, starts, free)] == free
    other = [[*tokens[:3], (tokens[3] + 1) % 512, *tokens[4:]] for tokens in free]
    found = choices(forward, starts, other)
    assert [list(each.tokens[:4]) for each in found] == [tokens[:4] for tokens in free]
    assert all(len(each.tokens) == len(each.gaps) == 6 and min(each.gaps) >= 0 for each in found)
    assert choices(forward, [], []) == ()
