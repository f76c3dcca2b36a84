"""Shared by the library's tests: a tiny experiment, and a store of its own for every test."""

import pytest
import torch

from unmask.experiments import experiment
from unmask.store import Store


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Small enough to train in a test, large enough to have several epochs and a schedule."""
    return experiment("smoke", steps=24, train_samples=200, test_samples=100)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory):
    """A store that the tests of the `smoke` preset share: what one computes the next finds."""
    return Store(tmp_path_factory.mktemp("smoke"))
