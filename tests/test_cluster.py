"""A real Ray cluster of two nodes on this machine: the same bytes, and no loss of a worker or a
node ends it."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import unmask
from unmask import cluster, parallel, tables
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.parallel import Output, Task
from unmask.store import Store

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all of them

NAMES = ["levels", "segments"]
NODE = dict(num_cpus=1, object_store_memory=80_000_000)


@pytest.fixture(scope="module")
def nodes(server):
    """Whose environment says where the server of S3 is."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else its workers come after all other tests
        made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        made.add_node(**NODE)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def joined(nodes):
    """The same, with workers that stay from test to test."""
    import ray

    ray.init(nodes.address, include_dashboard=False)
    yield nodes
    ray.shutdown()


@pytest.fixture(scope="module")
def e():
    return experiment("smoke", steps=60)


@pytest.fixture(scope="module")
def serial(e, tmp_path_factory):
    """What one process computes."""
    store = Store(tmp_path_factory.mktemp("serial"))
    unmask.measure(e, NAMES, store, jobs=1)
    return contents(store)


def contents(store):
    return {name: (store.root / name).read_bytes() for name in sorted(store.names())}


def measure(e, store, nodes):
    unmask.measure(e, NAMES, store, backend="ray", address=nodes.address)


def at_work():
    """Processes that do a task: Ray names them after it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::do_there"):
                yield int(folder.name)
        except OSError:  # ended by now
            pass


def while_it_runs(store, entries, harm):
    """Call `harm`, until it has done it, once so many entries are there."""

    def watch():
        while len(list(store.root.rglob("*.json"))) < entries or not harm():
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_tables_are_those_of_one_process(e, serial, nodes, bucket, capfd):
    """In a bucket; those in a folder are below."""
    store = Store(f"{bucket.url}/on-ray")
    measure(e, store, nodes)
    assert contents(store) == serial
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"unmask: {len(list(tables.graph(e, NAMES)))} of ")


def test_a_worker_is_killed_and_its_task_done_again(e, serial, joined, store):
    killed = []

    def kill():
        for process in at_work():
            os.kill(process, signal.SIGKILL)
            killed.append(process)
        return killed

    thread = while_it_runs(store, 4, kill)
    measure(e, store, joined)
    thread.join(10)
    assert killed and contents(store) == serial


def test_a_node_goes_and_the_others_do_its_tasks(e, serial, joined, store):
    node, before = joined.add_node(**NODE), {}

    def remove():
        before.update({path: path.stat() for path in store.root.rglob("*.json")})
        joined.remove_node(node, allow_graceful=False)
        return True

    thread = while_it_runs(store, 4, remove)
    measure(e, store, joined)
    thread.join(10)
    joined.wait_for_nodes()  # until all know that one is gone, as the next test counts them
    assert before and contents(store) == serial
    # what had been finished was not done again
    assert {path: path.stat().st_mtime_ns for path in before} == {
        path: about.st_mtime_ns for path, about in before.items()
    }


def test_what_kills_every_worker_is_said_and_the_rest_goes_on(joined, store, monkeypatch):
    def done(lab, name):
        if name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        lab.store.put_tensors(name, {"x": torch.zeros(1)})

    def task(name, *needs):
        needed = frozenset(f"{need}.safetensors" for need in needs)
        return Task(done, (name,), (Output(f"{name}.safetensors", name, 1),), (needed,))

    monkeypatch.setattr(cluster, "RETRIES", 1)
    lab = Lab(experiment("smoke"), store)
    store.prepare()
    tasks = [task("deadly"), task("heir", "deadly"), task("alive"), task("next", "alive")]
    said = (
        r"^its worker was lost: WorkerCrashedError after 1 retries \(in: deadly\); 1 networks or "
        "parts of tables need them, not tried; what is independent of them is in the store$"
    )
    with (
        pytest.raises(UnmaskError, match=said),
        cluster.connected(lab, None, joined.address) as workers,
    ):
        assert workers.slots == 2 and workers.where == " on 2 nodes" and workers.room() == 4
        parallel.run(tasks, workers)
    assert {"alive.safetensors", "next.safetensors"} <= set(store.names())
    assert "heir.safetensors" not in store


def test_a_node_that_does_not_see_the_store_ends_it(joined, store):
    lab = Lab(experiment("smoke"), store)
    _ = lab.data
    shutil.rmtree(store.root)  # as if it were on this machine alone
    task = Task(print, ("x",), (Output("x.csv", "x", 1),), (frozenset(),))
    with (
        pytest.raises(UnmaskError, match=f"^[^ ]+ does not see {store.root}, which all have to$"),
        cluster.connected(lab, None, joined.address) as workers,
    ):
        parallel.run([task], workers)


def test_what_a_task_asks_for_goes_by_its_size(store):
    lab = Lab(experiment("smoke", train_samples=100, test_samples=50, batch_size=10), store)
    asked = cluster.Cluster.__new__(cluster.Cluster)
    asked.lab = lab
    data = 150 * (40 * 4 + 8)  # float32 signals of 40 points, int64 labels
    assert asked.needed(0) == data and asked.needed(0, 5e9) == data + 5e9
    one = asked.needed(1) - data
    assert asked.needed(6) == data + 6 * one
    weights = sum(p.numel() for p in lab.network.parameters())
    twice = cluster.Cluster.__new__(cluster.Cluster)
    twice.lab = Lab(lab.experiment.but(batch_size=20), store)
    activations = twice.needed(1) - data - one
    assert one == 16 * weights + activations and activations > 10 * 40 * 4
    # as many share a GPU as its memory holds, and no more than is useful
    for memory, sharing in ((1e9, 1), (5e9, 4), (80e9, cluster.SHARING), (1e6, 1)):
        asked.gpu = memory
        assert asked.share(1, 5e8) == 1 / sharing


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(backend="slurm"), "backend='slurm': must be one of local, ray"),
        (dict(address="10.0.0.1:6379"), "address='10.0.0.1:6379': is that of a cluster; with "),
        (dict(backend="ray"), r"backend='ray': Ray is not installed; pip install -e '\.\[ray\]'"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(options, said, store, monkeypatch):
    monkeypatch.setattr(parallel, "find_spec", lambda _: None)
    with pytest.raises(UnmaskError, match=f"^{said}"):
        unmask.measure("smoke", ["levels"], store, **options)
    assert not store.root.exists()
