"""Shared by the library's tests: a tiny experiment, and a store of its own for every test."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from unmask.experiments import experiment
from unmask.store import Store

ARCHIVES = Path(__file__).resolve().parents[2] / "shared/data"


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


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Random images of 8 x 8 pixels: 2 classes, 30 for training and 10 for test in each."""
    monkeypatch.setenv("UNMASK_DATA", str(tmp_path))
    noise = np.random.RandomState(0)
    for split, count in (("train", 30), ("val", 10)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.randint(0, 128, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return tmp_path / "pets"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    from s3_server import serving

    with serving(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def bucket(server):
    """A bucket on a server of S3 of this machine; see `s3_server.Bucket`."""
    server.reset()
    yield server
    server.reset()


@pytest.fixture(params=["folder", "memory", "bucket"])
def anywhere(request, tmp_path):
    """A store of every kind."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    where = request.getfixturevalue("bucket").url if request.param == "bucket" else "memory:/"
    return Store(f"{where}/{tmp_path.name}")


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory):
    """A store that the tests of the `smoke` preset share: what one computes the next finds, also
    in another worker of pytest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return Store(tmp_path_factory.getbasetemp().parent / "smoke")
    return Store(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="session")
def real_images():
    """A folder with MNIST and a JPEG copy of CIFAR-10, from the archives beside the checkout.

    Kept in `build/`, as its 60,000 files take a minute to unpack and another to delete."""
    folder = Path(__file__).resolve().parents[1] / "build/images"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            for name in ("mnist.tar.gz", "cifar10-jpeg.tar.gz"):
                if not (ARCHIVES / name).exists():
                    pytest.skip(f"real images are tested where {ARCHIVES / name} is")
                with tarfile.open(ARCHIVES / name) as archive:
                    archive.extractall(partial, filter="data")
            partial.rename(folder)
    return folder
