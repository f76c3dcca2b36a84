"""Progress lines that a person can read, and errors that come back from workers whole."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import pytest
from joblib.externals.loky import get_reusable_executor

import unmask
from unmask import parallel, tables
from unmask.chains import Place
from unmask.errors import Degenerate, UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.parallel import Outcome, Output, Progress, Task
from unmask.store import Store


def task(name, *works, needs=()):
    """One with an output for each of the `works`, all made from the same."""
    outputs = [Output(f"{name}{i}.csv", f"{name}, part {i}", work) for i, work in enumerate(works)]
    names, needed = tuple(output.name for output in outputs), frozenset(needs)
    return Task(print, names, tuple(outputs), (needed,) * len(outputs))


def put(store, *names):
    """Mark outputs as there, as `Store.__contains__` looks for them."""
    store.prepare()
    for name in names:
        (store.root / f"{name}.csv.json").touch()


class Simulated(parallel.Workers):
    """Workers that do a unit of work a second, by a clock of their own."""

    def __init__(self, slots):
        self.slots, self.now = slots, 0.0

    def progress(self, tasks):
        return Progress(tasks, self, clock=lambda: self.now)

    def replay(self, shown):
        """Do all tasks in the order of a run; after each, the time."""
        waiting = sorted(range(len(shown.tasks)), key=lambda i: -shown.longest[i])
        while waiting or shown.running:
            for index in waiting.copy():
                if len(shown.running) == self.slots:
                    break
                if shown.start(index).args:
                    waiting.remove(index)
            ends = {i: began + task.work for i, (began, task) in shown.running.items()}
            index = min(ends, key=ends.get)
            self.now, names = ends[index], frozenset(o.name for o in shown.tasks[index].outputs)
            shown.end(index, Outcome(names, seconds=shown.tasks[index].work))
            yield self.now


def test_progress_counts_what_is_done_and_names_what_is_at_work(capsys):
    tasks = [task("a", 1), task("b", 2, 2), task("c", 4), task("d", 1, needs=["b1.csv"])]
    simulated = Simulated(2)
    shown = simulated.progress(tasks)
    shown.start(0)
    shown.start(1)
    assert shown.line() == (
        "unmask: 0 of 5 done in 00:00, 3 running, 2 waiting, about ? left; now a, part 0; b, part 0"
    )
    simulated.now = 2.0
    shown.end(0, Outcome(frozenset(["a0.csv"]), seconds=2.0))
    # two seconds for a unit of work: of b 3 units are left, beside c's 4 and d's 1
    line = "unmask: 1 of 5 done in 00:02, 2 running, 2 waiting, about 00:08 left; now b, part 0"
    assert shown.line() == line
    # of what was done together, another run is at one and the other fails
    shown.end(1, Outcome(busy=frozenset(["b1.csv"]), seconds=1.0, failure=UnmaskError("no")))
    assert ", 3 waiting, 1 failed, about " in shown.line()
    # what needs the one comes later, what needs the other is not tried
    assert not shown.start(3).args and ", 3 waiting, 1 failed, " in shown.line()
    assert shown.start(1).args == ("b1.csv",)
    shown.end(1, Outcome(failure=UnmaskError("no")))
    assert not shown.start(3).args and ", 1 waiting, 3 failed, " in shown.line()
    with Progress([], simulated):  # the last line is written however soon all is done
        pass
    assert capsys.readouterr().err == "unmask: 0 of 0 done in 00:00\n"


@pytest.mark.parametrize("jobs", [1, 2, 3, 4])
def test_the_time_left_goes_by_work(jobs):
    chains = [
        task(f"{name}{level}-", 60, needs=[f"{name}{level - 1}-0.csv"] if level else [])
        for name in "abcdef"
        for level in range(30)
    ]
    large = [task(f"large {i}-", 50, needs=["a29-0.csv"]) for i in range(24)]
    small = [task(f"small {i}-", 2, needs=[f"b{i % 30}-0.csv"]) for i in range(240)]
    simulated = Simulated(jobs)
    shown, counted, seen = simulated.progress(chains + large + small), [], []
    for now in simulated.replay(shown):
        seen.append((now, shown.seconds_left()))
        counted.append((shown.total - shown.done) * now / shown.done)
    end = seen[-1][0]
    assert seen[-1][1] == 0
    for now, left in seen:
        if now >= 0.05 * end:
            assert left == pytest.approx(end - now, rel=0.05, abs=0.01 * end)
    wrong = [count / (end - now) for (now, _), count in zip(seen, counted) if now < 0.5 * end]
    assert max(wrong) > 2


def test_it_lasts_at_least_as_long_as_what_has_to_be_done_one_after_the_other():
    chain = [task(f"{i}-", 10, needs=[f"{i - 1}-0.csv"] if i else []) for i in range(10)]
    others = [task(f"short {i}-", 10) for i in range(6)]
    simulated = Simulated(4)
    shown = simulated.progress(others + chain)
    for now in simulated.replay(shown):
        assert shown.seconds_left() == pytest.approx(100 - now)
    assert now == 100  # as the chain has been begun first


def test_nothing_is_promised_before_the_start_is_over():
    simulated = Simulated(1)
    shown = simulated.progress([task(f"{i}-", 1) for i in range(100)])
    assert shown.seconds_left() is None
    ends = simulated.replay(shown)
    next(ends)
    assert shown.seconds_left() is None and "99 waiting, about ? left" in shown.line()
    next(ends)
    assert shown.seconds_left() == 98 and "98 waiting, about 01:38 left" in shown.line()


def test_errors_come_back_from_workers(store):
    e = experiment("smoke", lr=1e6, steps=60)
    with pytest.raises(Degenerate, match="training diverged"):
        unmask.table("levels", e, store, jobs=2)
    assert not any("imp" in name for name in store.names())


def fail_or_put(lab, what):
    name, how = what
    if how == "degenerate":
        raise Degenerate("came to nothing")
    if how == "bad":
        raise UnmaskError("no such folder")
    if how == "bug":
        1 / 0  # noqa: B018
    put(lab.store, name)


def run(tasks, store, jobs):
    store.prepare()
    with parallel.local(Lab(experiment("smoke"), store), jobs) as workers:
        parallel.run(tasks, workers)


def test_a_node_is_waited_for_without_asking_all_the_time(store, monkeypatch):
    """Nothing is under way, and nothing can be: a cluster may have no node for a while."""
    slept, asked = [], iter([0, 0, 0])
    monkeypatch.setattr(parallel.time, "sleep", slept.append)

    class Late(parallel.Workers):
        def room(self):
            return next(asked, 1)

    store.prepare()
    task = Task(fail_or_put, (("a", ""),), (Output("a.csv", "a", 1),), (frozenset(),))
    parallel.run([task], Late(Lab(experiment("smoke"), store)))
    assert "a.csv" in store and slept.count(1) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_stops_only_what_needs_it(store, jobs, capfd):
    def of(name, how, *needs):
        outputs, needed = (Output(f"{name}.csv", name, 1),), {f"{need}.csv" for need in needs}
        return Task(fail_or_put, ((name, how),), outputs, (frozenset(needed),))

    tasks = [of("grandchild", "", "heir", "next"), of("last", "", "next"), of("heir", "", "dead")]
    tasks += [of("next", "", "alive"), of("dead", "degenerate"), of("alive", "")]
    tasks += [of("wrong", "bug")]
    # workers of before would write to what was their stderr
    get_reusable_executor(max_workers=1).shutdown(wait=True)
    with pytest.raises(UnmaskError) as caught:
        run(tasks, store, jobs)
    said, _, rest = str(caught.value).partition("; 2 networks or parts of tables need them, not")
    dead, bug = "came to nothing (in: dead)", "ZeroDivisionError: division by zero (in: wrong)"
    assert sorted(said.split("; ")) == [bug, dead] and not isinstance(caught.value, Degenerate)
    assert rest == " tried; what is independent of them is in the store"
    assert {f"{name}.csv" for name in ("alive", "next", "last")} == set(store.names())
    said = capfd.readouterr().err
    assert re.fullmatch(r"unmask: 3 of 7 done in .*, 4 failed", said.splitlines()[-1])
    assert said.count("Traceback") == 1  # where the bug is
    # but what would fail everywhere ends all at once
    with pytest.raises(UnmaskError, match="^no such folder$"):
        run([of("folder", "bad"), of("more", "", "folder")], store, jobs)
    assert "more.csv" not in store


def test_tasks_of_a_long_chain_and_of_a_large_sweep_take_little_time_each(store):
    """They are walked one by one, in time in proportion to their number."""
    chain = [task(f"{i}-", 1, needs=[f"{i - 1}-0.csv"] if i else []) for i in range(3000)]

    class Done(parallel.Workers):
        def __init__(self):
            self.order = []

        def submit(self, task):
            self.order += task.args
            future = Future()
            future.set_result(Outcome(frozenset(o.name for o in task.outputs)))
            return future

    workers = Done()
    parallel.run(chain[::-1], workers)
    assert workers.order == [f"{i}-0.csv" for i in range(3000)]


def test_networks_that_pruning_kills_are_results_and_the_rest_goes_on(tmp_path):
    """Of 1876 weights two are left; the Hessian is zero, and two solutions are the same."""
    e = experiment("smoke", prune_fraction=0.9, levels=3, seeds=1, weight_decay=0.0)
    store = Store(tmp_path)
    with pytest.raises(UnmaskError) as caught:
        unmask.measure(e, store=store, jobs=1)
    assert str(caught.value).startswith("a plane needs three different networks")
    assert "(in: landscape, seed 0, rewind step 0, plane" in str(caught.value)
    others = [name for name in tables.known_tables() if name != "landscape"]
    found = unmask.measure(e, others, store, jobs=1)
    assert all(len(table) for table in found.values())
    assert found["levels"].survivors.min() == 2
    largest = found["curvatures"].query("steps == 0").largest
    assert (largest <= 0).all() and (found["predictions"].query("steps == 0").ratio == 1).all()


def test_everything_stored_means_no_process_is_started(tiny, store, monkeypatch):
    before = unmask.table("levels", tiny, store, jobs=1)
    monkeypatch.setattr(parallel, "local", lambda *_: pytest.fail("started"))
    assert unmask.table("levels", tiny, store, jobs=2).equals(before)


def test_by_default_there_is_a_process_for_each_core_but_one_for_a_gpu():
    assert parallel.check_jobs(None) == parallel.check_jobs(None, "cpu") >= 1
    assert parallel.check_jobs(None, "cuda") == 1 and parallel.check_jobs(3, "cuda") == 3


@pytest.mark.parametrize("jobs", [0, -1, 2.0, True, "2"])
def test_a_number_of_jobs_that_is_none_is_refused(jobs):
    with pytest.raises(UnmaskError, match=f"^jobs={jobs!r}: must be a whole number, 1 to 1,024$"):
        parallel.check_jobs(jobs)


def test_a_killed_worker_is_said_in_one_line(store, monkeypatch):
    monkeypatch.setattr(parallel, "do_there", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UnmaskError, match="a worker process was killed") as caught:
        run([task("t", 1), task("u", 1)], store, jobs=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("parts", [0.4, 1, 2, 3, 8])
def test_replicates_are_shared_out_evenly_to_as_many_tasks_as_can_work(store, items, parts):
    lab = Lab(experiment("smoke", device="cpu"), store)
    groups = list(tables.shared_out(lab, range(items), parts))
    sizes = [len(group) for group in groups]
    assert [item for group in groups for item in group] == list(range(items))
    assert len(groups) >= min(items, parts)
    assert max(sizes) <= 16 and max(sizes) - min(sizes) <= 1


def test_what_another_run_is_at_comes_last_and_is_waited_for(tmp_path):
    """Here this test is the other run: it holds the chain of seed 0 from step 0 for a while."""
    lab = Lab(experiment("smoke"), Store(tmp_path))
    held = lab.name(Place("imp", 0, 0, 1)) + ".safetensors"
    command = [sys.executable, "-m", "unmask", "run", "smoke", "--tables", "levels", "--jobs", "2"]
    with lab.store.claimed([held]) as ours:
        assert ours == {held}
        with lab.store.claimed([held, "more"]) as also:
            assert also == {"more"}
        environment = os.environ | {"UNMASK_STORE": str(tmp_path)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        others = {(seed, step) for seed in (0, 1) for step in (0, 5)} - {(0, 0)}
        names = {lab.name(Place("imp", *place, 3)) + ".safetensors" for place in others}
        while not all(name in lab.store for name in names):
            assert process.poll() is None
            time.sleep(0.1)
        assert held not in lab.store and process.poll() is None
    assert process.wait(60) == 0
    tables.load_findings()
    assert held in lab.store and tables.complete(lab, ["levels"])


def test_joblib_without_processes_of_its_own_works_as_well(tmp_path):
    command = [sys.executable, "-m", "unmask", "run", "smoke", "--tables", "levels", "--jobs", "2"]
    known = os.environ | {"UNMASK_STORE": str(tmp_path), "JOBLIB_MULTIPROCESSING": "0"}
    assert subprocess.run(command, env=known, stderr=subprocess.DEVNULL).returncode == 0
    tables.load_findings()
    assert tables.complete(Lab(experiment("smoke"), Store(tmp_path)), ["levels"])


def test_two_runs_at_once_do_each_training_once(tmp_path, monkeypatch):
    """Each names in a file what it trains."""
    script = """if True:
        import sys, time
        from unmask import lab
        from unmask.cli import main
        train_all = lab.train_all
        def counted(e, split, starts, *rest, **options):
            with open(sys.argv[1], "a") as file:
                file.writelines(f"{start.order} {rest}\\n" for start in starts)
            return train_all(e, split, starts, *rest, **options)
        lab.train_all = counted
        sys.exit(main("run smoke --tables levels --jobs 1 --set seeds=4".split()))"""
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "store"))
    for i in range(2):
        (tmp_path / f"{i}").touch()  # who starts late may find nothing left to train
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / f"{i}")]) for i in range(2)
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    trained = [(tmp_path / f"{i}").read_text().splitlines() for i in range(2)]
    assert len(sum(trained, [])) == len(set(sum(trained, []))) == 4 * (1 + 2 * 3)
