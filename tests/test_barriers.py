"""Barriers against closed forms, and segments against networks evaluated by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import data, networks
from unmask.barriers import interpolate, reestimate_norms, segment
from unmask.train import evaluate, generator
from unmask.verdicts import METRICS, barrier


def path(*errors):
    return pd.DataFrame({"t": np.linspace(0, 1, len(errors)), "test_error": errors})


def test_barrier_of_known_paths():
    assert barrier(path(0.1, 0.9, 0.3)) == pytest.approx(0.7)
    assert barrier(path(0.2, 0.2, 0.2)) == 0
    assert barrier(path(0.2, 0.1, 0.2)) == 0  # a valley between the two is no barrier
    assert barrier(path(0.0, 0.2, 0.4)) == pytest.approx(0.2)  # one end is the largest
    assert barrier(path(0.1, 0.9, 0.3).iloc[::-1]) == pytest.approx(0.7)  # rows in any order


@given(st.lists(st.floats(0, 1), min_size=3, max_size=11))
def test_barrier_is_never_less_than_half_the_difference_of_the_ends(errors):
    assert barrier(path(*errors)) >= abs(errors[0] - errors[-1]) / 2 - 1e-12


@pytest.fixture
def two(tiny, store):
    one, other = (networks.initial_state(tiny, generator(seed)) for seed in (0, 1))
    return networks.build(tiny), one, other, data.load(tiny, store)


def test_interpolation_is_exact_at_the_ends_and_linear_between(two):
    _, one, other, _ = two
    for t, expected in ((0.0, one), (1.0, other)):
        assert all(torch.equal(interpolate(one, other, t)[n], expected[n]) for n in one)
    quarter = interpolate(one, other, 0.25)
    for n in one:
        expected = 0.75 * one[n].double() + 0.25 * other[n].double()
        torch.testing.assert_close(quarter[n].double(), expected)


def test_segment_evaluates_each_point(two):
    network, one, other, sets = two
    table = segment(network, one, other, (0.0, 0.5, 1.0), sets, METRICS)
    assert list(table.columns) == ["t", "test_error", "train_error", "train_loss"]
    networks.load_state(network, interpolate(one, other, 0.5))
    test, train = evaluate(network, sets.test), evaluate(network, sets.train)
    assert table.iloc[1].tolist() == [0.5, test.error, train.error, train.loss]
    alone = segment(network, one, other, (0.0, 0.5, 1.0), sets)
    assert alone.equals(table[["t", "test_error"]])


def test_reestimated_statistics_are_those_of_the_training_data(two):
    network, one, _, sets = two
    networks.load_state(network, one)
    before = {n: p.clone() for n, p in network.named_parameters()}
    reestimate_norms(network, sets.train, batch_size=len(sets.train.y))
    stem = network.stem(sets.train.x.permute(1, 2, 0)[None])[0].flatten(1)
    torch.testing.assert_close(network.norm.running_mean, stem.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.norm.running_var, stem.var(1), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[n], p) for n, p in network.named_parameters())
    assert network.norm.momentum == 0.1
