"""Masks: exact counts, a fixed rule for ties, nesting, and the kinds of control they are for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import networks, pruning
from unmask.errors import UnmaskError
from unmask.experiments import PRESETS
from unmask.train import generator


def state_and_mask(*layers):
    state = {f"layer{i}.weight": torch.tensor(values) for i, values in enumerate(layers)}
    mask = {name: torch.ones_like(weights, dtype=torch.bool) for name, weights in state.items()}
    return state | {"layer0.bias": torch.zeros(2)}, mask


weights = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def test_magnitude_pruning_is_global_over_layers():
    state, mask = state_and_mask([1.0, -5.0, 0.5], [0.1, -0.2])
    mask = pruning.prune_magnitude(state, mask, 3)
    assert [m.tolist() for m in mask.values()] == [[True, True, True], [False, False]]
    assert list(mask) == ["layer0.weight", "layer1.weight"]


def test_of_equal_magnitudes_the_first_goes_first():
    state, mask = state_and_mask([1.0, -1.0, 1.0], [-1.0, 2.0])
    mask = pruning.prune_magnitude(state, mask, 3)
    assert [m.tolist() for m in mask.values()] == [[False, False, True], [True, True]]


@given(first=weights, second=weights, data=st.data())
@settings(max_examples=150, deadline=None)
def test_magnitude_pruning_keeps_exactly_the_largest_survivors(first, second, data):
    state, dense = state_and_mask(first, second)
    total = len(first) + len(second)
    keep = data.draw(st.integers(1, total))
    fewer = data.draw(st.integers(1, keep))
    mask = pruning.prune_magnitude(state, dense, keep)
    nested = pruning.prune_magnitude(state, mask, fewer)
    assert pruning.survivors(mask) == keep and pruning.survivors(nested) == fewer
    assert all((nested[n] <= mask[n]).all() for n in mask)
    kept = torch.cat([state[n][mask[n]].abs() for n in mask])
    gone = torch.cat([state[n][~mask[n]].abs() for n in mask])
    assert gone.numel() == 0 or gone.max() <= kept.min()


@given(keep=st.integers(1, 20), fewer=st.integers(1, 20), seed=st.integers(0, 5))
def test_random_masks_are_exact_and_nested(keep, fewer, seed):
    _, dense = state_and_mask([0.0] * 12, [0.0] * 8)
    keep, fewer = max(keep, fewer), min(keep, fewer)
    big, small = (pruning.prune_random(dense, n, generator(seed)) for n in (keep, fewer))
    assert pruning.survivors(big) == keep and pruning.survivors(small) == fewer
    assert all((small[n] <= big[n]).all() for n in big)


def test_shuffling_keeps_every_layers_density_and_nesting():
    state, dense = state_and_mask(torch.randn(40).tolist(), torch.randn(60).tolist())
    big = pruning.prune_magnitude(state, dense, 50)
    small = pruning.prune_magnitude(state, big, 20)
    shuffled = [pruning.shuffle_layerwise(mask, generator(1)) for mask in (big, small)]
    for name in dense:
        for before, after in zip((big, small), shuffled):
            assert after[name].sum() == before[name].sum()
        assert (shuffled[1][name] <= shuffled[0][name]).all()
    assert any((shuffled[0][name] != big[name]).any() for name in dense)


def test_survivors_follow_the_rounding_of_each_level():
    left = [pruning.survivors_at(7144, 0.2, level) for level in range(4)]
    assert left == [7144, 5715, 4572, 3658]
    with pytest.raises(UnmaskError, match="would leave no weight"):
        pruning.survivors_at(100, 0.9, 5)
    with pytest.raises(UnmaskError, match="would remove no weight"):
        pruning.survivors_at(2, 0.1, 1)


def test_impossible_counts_are_refused():
    state, mask = state_and_mask([1.0, 2.0])
    for keep in (0, 3, -1):
        with pytest.raises(UnmaskError, match=f"keep={keep}: must be between 1 and the 2"):
            pruning.prune_magnitude(state, mask, keep)


def test_projection_zeroes_what_is_pruned_and_nothing_else():
    state, mask = state_and_mask([1.0, -5.0], [0.1, -0.2])
    mask = pruning.prune_magnitude(state, mask, 2)
    projected = pruning.apply(mask, state)
    assert projected["layer0.weight"].tolist() == [1.0, -5.0]
    assert projected["layer1.weight"].tolist() == [0.0, 0.0]
    assert projected["layer0.bias"] is not state["layer0.bias"]
    assert state["layer1.weight"].tolist() == pytest.approx([0.1, -0.2])


def test_prunable_are_weights_of_convolutions_and_linear_layers():
    network = networks.build(PRESETS["miniature"])
    mask = pruning.dense_mask(network)
    names = list(mask)
    assert names[0] == "stem.weight" and names[-1] == "linear.weight"
    assert not any("norm" in name or "bias" in name for name in names)
    assert pruning.survivors(mask) == 7144
    assert all(mask[name].shape == network.get_parameter(name).shape for name in names)
