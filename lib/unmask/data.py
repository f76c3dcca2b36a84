"""Data sets, as tensors on a device."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch

from .experiments import Experiment
from .store import Store


class Split(NamedTuple):
    """Inputs, (samples, channels, length) float32, and labels, (samples,) int64."""

    x: torch.Tensor
    y: torch.Tensor

    def to(self, device: torch.device) -> Split:
        return Split(self.x.to(device), self.y.to(device))


class Data(NamedTuple):
    train: Split
    test: Split


CLASSES = 10


def load(experiment: Experiment, store: Store) -> Data:
    """Train and test split of the experiment's data set, on the CPU; generated once and then read from the store."""
    e = experiment
    name = f"data/{e.dataset}-{e.digest('dataset', 'train_samples', 'test_samples', 'data_seed')}"
    tensors = store.tensors(name)
    if tensors is None:
        tensors = _mnist1d(e.train_samples, e.test_samples, e.data_seed)
        store.put_tensors(name, tensors)
    return Data(Split(tensors["train.x"], tensors["train.y"]), Split(tensors["test.x"], tensors["test.y"]))


def _mnist1d(train: int, test: int, seed: int) -> dict[str, torch.Tensor]:
    """MNIST-1D (Greydanus & Kobak, arXiv:2011.14439) from its own package: 40 points a sample, no download."""
    import numpy as np
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples, settings.seed = train + test, seed
    # make_dataset seeds the global generators: put them back as they were found
    states = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(settings)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    # split here, not by the package's train_split, which is a rounded share
    x = torch.from_numpy(np.concatenate([made["x"], made["x_test"]])).float().unsqueeze(1)
    y = torch.from_numpy(np.concatenate([made["y"], made["y_test"]])).long()
    return {"train.x": x[:train].clone(), "train.y": y[:train].clone(),
            "test.x": x[train:].clone(), "test.y": y[train:].clone()}
