"""Task arithmetic on adapters against the same sums written into dense weights."""

from __future__ import annotations

import pytest
import torch
from tiny_team import make_adapter, make_model, make_team

from fusionlab.adapters import merge_adapters
from fusionlab.baselines import generate_alone
from fusionlab.errors import ModelError, UnknownNameError
from fusionlab.evaluate import sha256_of_member

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]


def test_a_merged_adapter_is_the_dense_weighted_sum_of_changes() -> None:
    """small + 0.3 (a - small) + 0.7 (b - small), also where ranks differ and a layer is changed by one expert only."""
    small = make_model(1, layers=1)
    one, other = make_adapter(small, "a", 10), make_adapter(small, "b", 11, rank=5)
    only_down = type(other)("b", {name: change for name, change in other.changes.items() if "down_proj" in name})
    dense = make_model(1, layers=1)
    for adapter, weight in ((one, 0.3), (only_down, 0.7)):
        for module, (down, up, scaling) in adapter.changes.items():
            dense.get_submodule(module).weight.data += weight * scaling * (up @ down)
    team = make_team().with_expert(merge_adapters([one, only_down], [0.3, 0.7], "sum"), source="test")
    assert team.backbone is not None
    ids = torch.tensor([[3, 4, 5], [9, 8, 7]])
    with torch.no_grad():
        team.backbone.select(["sum"], with_small=False)
        torch.testing.assert_close(team.small.model(ids).logits, dense(ids).logits, atol=2e-5, rtol=1e-4)


def test_merging_one_expert_with_weight_1_gives_that_expert() -> None:
    """The backbone gives back the adapter that it was given."""
    team = make_team()
    assert team.backbone is not None
    same = team.with_expert(merge_adapters([team.backbone.adapter("b")], [1.0], "same"), source="test")
    assert generate_alone(same, "same", PROMPTS).token_ids == generate_alone(team, "b", PROMPTS).token_ids
    fused = same.generate(PROMPTS, experts=["same"], trace=None).token_ids
    assert fused == team.generate(PROMPTS, experts=["b"], trace=None).token_ids


def test_one_expert_more_leaves_the_old_team_as_it_was() -> None:
    """`experts=None` means all of a team's experts: a merged one must not join a team behind its back."""
    team = make_team()
    assert team.backbone is not None
    before = team.generate(PROMPTS, method="joint", trace=None).token_ids
    larger = team.with_expert(merge_adapters([team.backbone.adapter("a")], [2.0], "double"), source="test")
    assert list(team.experts) == ["a", "b"] and list(larger.experts) == ["a", "b", "double"]
    assert team.generate(PROMPTS, method="joint", trace=None).token_ids == before
    with pytest.raises(ModelError, match="holds an expert 'double'"):
        larger.with_expert(merge_adapters([team.backbone.adapter("a")], [2.0], "double"), source="test")


def test_what_cannot_be_merged_is_refused() -> None:
    """A weight short, or a name that is not there, is the caller's slip and not zero."""
    team = make_team()
    assert team.backbone is not None
    with pytest.raises(ModelError, match="1 adapters and 2 weights"):
        merge_adapters([team.backbone.adapter("a")], [1.0, 2.0], "x")
    with pytest.raises(UnknownNameError, match="'c'.*known: a, b"):
        team.backbone.adapter("c")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_is_the_same_before_and_after_it_ran(dtype: torch.dtype) -> None:
    """The first forward stacks factors and casts them; what an evaluation calls these weights must not change then."""
    team = make_team()
    team.large.model.to(dtype)
    team.small.model.to(dtype)
    before = sha256_of_member(team, "a")
    team.generate(PROMPTS, experts=["b", "a"], max_new_tokens=2, trace=None)
    assert sha256_of_member(team, "a") == before
    assert sha256_of_member(team, "b") != before
