"""Progress lines that a person can read, and errors that come back from workers whole."""

import os
import signal
import time

import pandas as pd
import pytest

from unmask import measure, parallel
from unmask.chains import Runs
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.parallel import Progress, Task


def test_progress_counts_what_is_in_the_store_and_names_what_is_next(store, capsys):
    tasks = [Task("m:f", (), tuple((f"{chain}{level}.csv", f"chain {chain} level {level}") for level in range(3)))
             for chain in "abc"]
    store.table("a0", lambda: pd.DataFrame({"x": [1]}))
    with Progress(tasks, store, 2, interval=0.1):
        store.table("a1", lambda: pd.DataFrame({"x": [1]}))
        time.sleep(1.2)
    lines = capsys.readouterr().err.splitlines()
    assert "unmask: 1 of 8 done in 00:0" in lines[0]
    assert "7 remain, about 00:" in lines[0] and "now chain a level 2; chain b level 0" in lines[0]


def test_errors_come_back_from_workers(store):
    e = experiment("smoke", lr=1e6, steps=60)
    with pytest.raises(UnmaskError, match="training diverged"):
        measure.table("levels", e, store, jobs=2)
    assert not any("imp" in name for name in store.names())


def test_everything_stored_means_no_process_is_started(store, monkeypatch):
    store.table("t", lambda: pd.DataFrame({"x": [1]}))
    monkeypatch.setattr("joblib.Parallel", lambda **_: pytest.fail("started"))
    parallel.run([[Task("m:f", (), (("t.csv", "t"),))]], experiment("smoke"), store, jobs=2)


def test_by_default_there_is_a_process_for_each_core_but_one_for_a_gpu():
    assert parallel.check_jobs(None) == parallel.check_jobs(None, "cpu") >= 1
    assert parallel.check_jobs(None, "cuda") == 1 and parallel.check_jobs(3, "cuda") == 3


def test_a_killed_worker_is_said_in_one_line(store, monkeypatch):
    monkeypatch.setattr(parallel, "_do", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    waves = [[Task("m:f", (), ((f"{name}.csv", name),)) for name in "tu"]]
    with pytest.raises(UnmaskError, match="a worker process was killed"):
        parallel.run(waves, experiment("smoke"), store, jobs=2)


@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("parts", [0.4, 1, 2, 3, 8])
def test_replicates_are_shared_out_evenly_to_as_many_tasks_as_can_work(store, items, parts):
    groups = list(measure._groups(Runs(experiment("smoke"), store), range(items), parts))
    sizes = [len(group) for group in groups]
    assert [item for group in groups for item in group] == list(range(items))
    assert len(groups) >= min(items, parts) and max(sizes) <= 6 and max(sizes) - min(sizes) <= 1
