"""Progress lines that a person can read, and errors that come back from workers whole."""

import os
import signal
import subprocess
import sys
import time

import pytest

import unmask
from unmask import parallel, tables
from unmask.chains import Place
from unmask.errors import Degenerate, UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.parallel import Output, Progress, Task
from unmask.store import Store


def task(name, *works):
    """A task that puts as many outputs into the store as there are `works`."""
    outputs = [Output(f"{name}{i}.csv", f"{name}, part {i}", work) for i, work in enumerate(works)]
    names = tuple(output.name for output in outputs)
    return Task(print, names, tuple(outputs), (frozenset(),) * len(outputs), names)


def put(store, *names):
    """Mark outputs as there, as `Store.__contains__` looks for them."""
    store.prepare()
    for name in names:
        (store.root / f"{name}.csv.json").touch()


def test_progress_counts_what_is_in_the_store_and_names_what_is_next(store, capsys):
    wave = [task(f"chain {chain}", 1, 1, 1) for chain in "abcd"]
    put(store, "chain a0")
    shown = Progress([wave], store, 2)
    put(store, "chain b0")
    remaining = shown.look(seconds=8)
    # each of two processes has done an output in 8 seconds, and has 5 left
    assert shown._line(remaining, 8.0) == (
        "unmask: 2 of 12 done in 00:08, 10 remain, about 00:40 left; "
        "now chain a, part 1; chain b, part 1"
    )
    put(store, "chain a1", "chain a2", "chain b1")
    line = shown._line(shown.look(seconds=20), 28.0)
    assert "5 of 12 done in 00:28, 7 remain" in line
    assert line.endswith("; now chain b, part 2; chain c, part 0")
    put(store, *(f"chain {chain}{i}" for chain in "bcd" for i in range(3)))
    assert shown._line(shown.look(seconds=8), 36.0) == "unmask: 12 of 12 done in 00:36"
    # the last line is written however soon all is done
    with Progress([wave], store, 2):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unmask: 12 of 12 done in 00:")


def replay(waves, jobs):
    """When each output would be there, and the end: tasks begin in order, at one unit of work a
    second, and a wave waits for the one before."""
    there, end = [], 0.0
    for wave in waves:
        free = [end] * jobs
        for each in wave:
            now = free.pop(free.index(min(free)))
            for output in each.outputs:
                now += output.work
                there.append((now, output.name.removesuffix(".csv")))
            free.append(now)
        end = max(free)
    return sorted(there), end


@pytest.mark.parametrize("jobs", [1, 2, 3, 4])
def test_the_time_left_goes_by_work(store, jobs):
    trainings = [task(f"chain {chain}", *[60] * 30) for chain in "abcdef"]
    large = [task(f"large {i}", 50) for i in range(24)]
    small = [task(f"small {i}", *[0.2] * 400) for i in range(6)]
    waves = [trainings, small + large]
    (there, end), shown, now, counted = replay(waves, jobs), Progress(waves, store, jobs), 0, []
    for done, (at, name) in enumerate(there, 1):
        shown.look(seconds=(at - now) / 2)  # while it is on its way
        put(store, name)
        remaining = shown.look(seconds=(at - now) / 2)
        assert remaining == len(there) - done
        now, truth = at, end - at
        if now >= 0.05 * end:
            assert shown.seconds_left() == pytest.approx(truth, rel=0.001, abs=0.001 * end)
        if 0.05 * end <= now <= 0.5 * end:
            counted.append(remaining * now / done / truth)
    assert shown.seconds_left() == 0
    assert min(counted) > 2


def test_a_wave_lasts_at_least_as_long_as_its_longest_task(store):
    wave = [task("long", *[10] * 10), *(task(f"short {i}", 10) for i in range(6))]
    shown = Progress([wave, [task("after", 40)]], store, 4)
    shown.look(seconds=10)
    put(store, "long0", "short 00", "short 10", "short 20")
    shown.look(seconds=0)
    assert shown.seconds_left() == pytest.approx(90 + 40)
    shown.look(seconds=10)
    put(store, "long1", "short 30", "short 40", "short 50")
    shown.look(seconds=0)
    # one process goes on alone, and what comes after waits for it
    for i in range(2, 10):
        assert shown.seconds_left() == pytest.approx(10 * (10 - i) + 40)
        shown.look(seconds=10)
        put(store, f"long{i}")
        shown.look(seconds=0)
    assert shown.seconds_left() == pytest.approx(40)


def test_nothing_is_promised_before_the_start_is_over(store):
    shown = Progress([[task("a", *[1] * 100)]], store, 1)
    assert shown.seconds_left() is None
    put(store, "a0")
    remaining = shown.look(seconds=3)
    assert shown.seconds_left() is None and "99 remain, about ? left" in shown._line(remaining, 3)
    put(store, "a1")
    remaining = shown.look(seconds=1)
    assert shown.seconds_left() == pytest.approx(98 * 2)
    assert "98 remain, about 03:16 left" in shown._line(remaining, 4)


def test_errors_come_back_from_workers(store):
    e = experiment("smoke", lr=1e6, steps=60)
    with pytest.raises(UnmaskError, match="training diverged"):
        unmask.table("levels", e, store, jobs=2)
    assert not any("imp" in name for name in store.names())


def fail_or_put(lab, what):
    name, how = what
    if how == "degenerate":
        raise Degenerate("came to nothing")
    if how == "bad":
        raise UnmaskError("no such folder")
    put(lab.store, name)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_comes_to_nothing_stops_only_what_needs_it(store, jobs, capsys):
    def of(name, how, *needs):
        outputs, needed = (Output(f"{name}.csv", name, 1),), {f"{need}.csv" for need in needs}
        return Task(fail_or_put, ((name, how),), outputs, (frozenset(needed),), (name,))

    waves = [
        [of("dead", "degenerate"), of("alive", "")],
        [of("heir", "", "dead"), of("next", "", "alive")],
        [of("grandchild", "", "heir", "next"), of("last", "", "next")],
    ]
    said = (
        r"^came to nothing \(in: dead\); 2 networks or parts of tables need them, not tried; "
        "what is independent of them is in the store$"
    )
    with pytest.raises(UnmaskError, match=said):
        parallel.run(waves, Lab(experiment("smoke"), store), jobs)
    assert {f"{name}.csv" for name in ("alive", "next", "last")} <= set(store.names())
    assert capsys.readouterr().err.splitlines()[-1].startswith("unmask: 3 of 6 done in 00:")
    # but what would fail everywhere ends all at once
    with pytest.raises(UnmaskError, match="^no such folder$"):
        parallel.run(
            [[of("folder", "bad")], [of("more", "")]], Lab(experiment("smoke"), store), jobs
        )
    assert "more.csv" not in store


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
    monkeypatch.setattr("joblib.Parallel", lambda **_: pytest.fail("started"))
    assert unmask.table("levels", tiny, store, jobs=2).equals(before)


def test_by_default_there_is_a_process_for_each_core_but_one_for_a_gpu():
    assert parallel.check_jobs(None) == parallel.check_jobs(None, "cpu") >= 1
    assert parallel.check_jobs(None, "cuda") == 1 and parallel.check_jobs(3, "cuda") == 3


@pytest.mark.parametrize("jobs", [0, -1, 2.0, True, "2"])
def test_a_number_of_jobs_that_is_none_is_refused(jobs):
    with pytest.raises(UnmaskError, match=f"^jobs={jobs!r}: must be a whole number, 1 to 1,024$"):
        parallel.check_jobs(jobs)


def test_a_killed_worker_is_said_in_one_line(store, monkeypatch):
    monkeypatch.setattr(parallel, "_do_there", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UnmaskError, match="a worker process was killed") as caught:
        parallel.run([[task("t", 1), task("u", 1)]], Lab(experiment("smoke"), store), jobs=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("parts", [0.4, 1, 2, 3, 8])
def test_replicates_are_shared_out_evenly_to_as_many_tasks_as_can_work(store, items, parts):
    lab = Lab(experiment("smoke", device="cpu"), store)
    groups = list(tables.shared_out(lab, range(items), parts))
    sizes = [len(group) for group in groups]
    assert [item for group in groups for item in group] == list(range(items))
    assert len(groups) >= min(items, parts)
    assert max(sizes) <= 6 and max(sizes) - min(sizes) <= 1


def test_what_another_run_is_at_comes_last_and_is_waited_for(tmp_path):
    """Here this test is the other run: it holds the chain of seed 0 from step 0 for a while."""
    lab = Lab(experiment("smoke"), Store(tmp_path))
    held = lab.name(Place("imp", 0, 0, 1)) + ".safetensors"
    command = [sys.executable, "-m", "unmask", "run", "smoke", "--tables", "levels", "--jobs", "2"]
    with lab.store.claimed([held], wait=False) as ours:
        assert ours == {held}
        with lab.store.claimed([held, "more"], wait=False) as also:
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


def test_a_chain_is_claimed_whole_and_a_control_by_itself(tmp_path):
    tables.load_findings()
    lab = Lab(experiment("smoke", levels=3, control_every=1), Store(tmp_path))
    parents = tables.graph(lab.experiment, ["levels", "controls"])
    tasks = [task for wave in tables.plan(lab, parents, 2) for task in wave]
    claims = {}
    for place, claim in ((place, c) for t in tasks for place, c in zip(t.args, t.claimed)):
        claims.setdefault(claim, []).append(place)
    chained = [places for places in claims.values() if len(places) > 1]
    assert len(chained) == 4 and all(len({p[:3] for p in places}) == 1 for places in chained)
    assert sum(places[0][0] == "random" for places in claims.values()) == 2 * 3


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
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / f"{i}")]) for i in range(2)
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    trained = [(tmp_path / f"{i}").read_text().splitlines() for i in range(2)]
    assert len(sum(trained, [])) == len(set(sum(trained, []))) == 4 * (1 + 2 * 3)
