"""What is different on a GPU: replicates are branches of one recorded graph. Their arithmetic is
tested anywhere, the recording and its bits where there is a GPU."""

import contextlib
from unittest import mock

import numpy as np
import pytest
import torch

from unmask import data, networks, pruning, tables
from unmask.curvature import hessian_operator
from unmask.experiments import experiment
from unmask.graphs import Graph, Loop
from unmask.lab import Lab
from unmask.store import Store
from unmask.train import Run, Start, batches, evaluate, generator, learning_rate
from unmask.train import replicates_at_once, train, train_all

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
SMALL = dict(train_samples=520, test_samples=300, steps=12, batch_size=64, curvature_samples=64)
CASES = {
    "miniature": {},
    "mnist_lenet": {},
    "cifar10_resnet8": {"precision": "tf32"},
    "cifar10_resnet20": {"precision": "tf32", "width": 8, "milestones": (0.5,)},
}


def setting(preset, count=3, device="cpu"):
    """An experiment, random data of its shape, and replicates, of which each has its own mask."""
    e = experiment(preset, SMALL | CASES[preset], rewind_steps=(0, 4), device=device)
    draws = generator("data")
    y = torch.randint(10, (e.train_samples,), generator=draws)
    if e.known_network.signals:
        split = data.Split(torch.randn(len(y), 1, 40, generator=draws), y)
    else:
        size = len(y), e.channels, e.image_size, e.image_size
        x = torch.randint(256, size, generator=draws, dtype=torch.uint8)
        mean = torch.full((e.channels, 1, 1), 120.0)
        split = data.Split(x, y, mean, mean / 2, e.augmentation)
    starts = []
    for seed in range(count):
        state = networks.initial_state(e, generator(seed))
        dense = pruning.dense_mask(networks.build(e), e.never_pruned)
        mask = pruning.prune_magnitude(state, dense, pruning.survivors(dense) // (seed + 1))
        starts.append(Start(state, mask, (seed, "order")))
    return e, split.to(torch.device(device)), starts


def ends(e, split, starts, **options):
    return [trained.states for trained in train(e, split, starts, snapshots=[4, 12], **options)]


@pytest.mark.parametrize("preset", CASES)
def test_branches_compute_what_each_replicate_would_alone(preset):
    """On any device: what a graph records, done step by step."""
    e, split, starts = setting(preset)
    runs = [Run(e, [start], split.device, recorded=True) for start in starts]
    loop, orders = Loop(e, runs), [start.order for start in starts]
    with networks.kernels(runs[0].network):
        for step, (x, y) in enumerate(batches(e, split, orders, 0, 3)):
            loop(x, y, torch.tensor(learning_rate(e, step)))
    for run, start in zip(runs, starts):
        ((states, _),) = train(e, split, [start], snapshots=[3])
        (state,) = run.states()
        for name, tensor in states[3].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
            assert state[name].is_contiguous()  # as it is stored
        assert not any(state[name][~kept].any() for name, kept in start.mask.items())


class Recorded:
    """Stands for a CUDA graph where there is no GPU: does again what was done in its recording."""

    def replay(self):
        self.recorded()


@pytest.mark.parametrize("wrong", [None, "another step", "not permitted"])
def test_a_graph_is_used_if_it_does_as_the_loop(wrong, monkeypatch, capsys):
    """Where there is no GPU, with what stands for one; the bits are those of the loop anyway."""
    e, split, starts = setting("mnist_lenet")
    runs = [Run(e, [start], split.device, recorded=True) for start in starts]
    graph, replayed = Graph(e, runs), []

    @contextlib.contextmanager
    def recording(made, **options):
        made.recorded = lambda: replayed.append(1) or graph.loop()
        if wrong == "another step":
            made.recorded = lambda: graph.advance(0)
        if wrong == "not permitted":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr("unmask.graphs._streams", lambda device: [mock.MagicMock()] * 9)
    for step, (x, y) in enumerate(batches(e, split, [s.order for s in starts], 0, 3)):
        graph(x, y, learning_rate(e, step))
    said = {
        None: "",
        "another step": "unmask: steps recorded are not the same as the loop's; ",
        "not permitted": "unmask: steps cannot be recorded (RuntimeError: operation not permitted ",
    }
    assert capsys.readouterr().err.startswith(said[wrong]) and bool(replayed) == (wrong is None)
    for run, (states, _) in zip(runs, train(e, split, starts, snapshots=[3])):
        for name, tensor in run.states()[0].items():
            torch.testing.assert_close(tensor, states[3][name], rtol=1e-5, atol=1e-6, msg=name)


def test_as_many_side_by_side_as_a_gpu_has_memory_for(monkeypatch):
    e, split, starts = setting("mnist_lenet", 5)
    groups = []

    def trained(e, split, group):
        groups.append(len(group))
        if len(group) > 2:
            raise torch.OutOfMemoryError
        return group

    monkeypatch.setattr("unmask.train.train", trained)
    monkeypatch.setattr("unmask.train.replicates_at_once", lambda *about: 8)
    assert train_all(e, split, starts) == starts and groups == [5, 2, 2, 1]


def test_side_by_side_on_a_gpu_are_those_that_do_not_depend_on_each_other():
    there = torch.device("cuda")
    assert replicates_at_once(experiment("cifar10_resnet20"), there) == 8
    assert replicates_at_once(experiment("miniature"), there) == 8
    assert replicates_at_once(experiment("imagenet_resnet50"), there) == 1  # streamed
    own = experiment("smoke", dataset="torchdata.py:x", network="torchvision:resnet18")
    assert replicates_at_once(own, there) == 1


@gpu
@pytest.mark.parametrize("preset", CASES)
def test_a_graph_gives_the_bits_of_the_loop(preset, monkeypatch, capsys):
    e, split, starts = setting(preset, count=5, device="cuda")
    together = ends(e, split, starts)
    assert not capsys.readouterr().err
    for start, states in zip(starts, together):
        (alone,) = ends(e, split, [start])
        assert all(torch.equal(alone[at][n], states[at][n]) for at in states for n in states[at])

    monkeypatch.setattr(Graph, "_record", lambda graph: None)
    for states, looped in zip(together, ends(e, split, starts)):
        assert all(torch.equal(looped[at][n], states[at][n]) for at in states for n in states[at])


@gpu
@pytest.mark.parametrize("preset", CASES)
def test_a_gpu_computes_what_a_processor_does_up_to_rounding(preset):
    e, split, starts = setting(preset)
    there = train(e, split.to(torch.device("cuda")), starts, snapshots=[2])
    for ours, theirs in zip(train(e, split, starts, snapshots=[2]), there):
        for name, tensor in ours.states[2].items():
            torch.testing.assert_close(theirs.states[2][name], tensor, rtol=1e-2, atol=1e-3)
    network = networks.build(e)
    networks.load_state(network, starts[0].state)
    ours, theirs = evaluate(network, split), evaluate(network.cuda(), split.to("cuda"))
    assert abs(ours.error - theirs.error) < 0.01 and abs(ours.loss - theirs.loss) < 1e-3


@gpu
@pytest.mark.parametrize("preset", ["miniature", "cifar10_resnet8"])
def test_a_graph_goes_on_where_it_was_stopped(preset, store, monkeypatch):
    e, split, starts = setting(preset, device="cuda")
    whole = ends(e, split, starts)
    monkeypatch.setattr("unmask.train.Unfinished.SECONDS", 0.0)

    class Stopped(Exception):
        pass

    def stop(start, state):
        raise Stopped

    with pytest.raises(Stopped):
        ends(e, split, starts, store=store, observe=stop, observed_at=[7])
    store.finish()
    assert store.unfinished or list(store.names())
    for states, resumed in zip(whole, ends(e, split, starts, store=store)):
        assert all(torch.equal(resumed[at][n], states[at][n]) for at in states for n in states[at])


@gpu
def test_hessian_products_on_a_gpu():
    e, split, starts = setting("cifar10_resnet8")
    vector, products = None, []  # SciPy's operator takes and gives NumPy's arrays
    for device, kind in (("cpu", torch.float64), ("cuda", torch.float32)):
        sample = split.to(torch.device(device)).as_inputs(64)
        network = networks.build(e).to(device)
        networks.load_state(network, starts[0].state)
        operator = hessian_operator(
            network.to(kind).eval(), starts[0].mask, sample._replace(x=sample.x.to(kind))
        )
        if vector is None:
            vector = np.random.RandomState(0).randn(operator.shape[0])
        products.append(operator @ vector)
    np.testing.assert_allclose(*products, rtol=1e-3, atol=1e-3 * np.abs(products[0]).max())


@gpu
def test_tables_do_not_depend_on_how_many_share_a_gpu(tmp_path):
    found = []
    for jobs in (1, 2):
        lab = Lab(experiment("smoke", device="cuda"), Store(tmp_path / str(jobs)))
        tables.compute(lab, tables.known_tables(), jobs)
        found.append({name: tables.read(lab, name) for name in tables.known_tables()})
        masks = [lab.level(0, 5, level).mask for level in range(lab.experiment.levels + 1)]
        for above, below in zip(masks, masks[1:]):
            assert all((above[name] | ~below[name]).all() for name in below)
    for name, one in found[0].items():
        assert one.equals(found[1][name]), name
