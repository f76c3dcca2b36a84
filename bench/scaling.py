"""How it scales out: what a task costs beside its work, and what two workers gain over one.

    python bench/scaling.py            # on two free cores; some minutes
    python bench/scaling.py tasks      # or one part; the other is kept from the output there is

What comes out is printed and written, with versions and hardware, as JSON.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# read when torch is imported; and else Ray's workers come after whatever else there is
os.environ.update(OMP_NUM_THREADS="1", RAY_worker_niceness="0")

from unmask import cluster, parallel, tables
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.parallel import Output, Task
from unmask.results import FOLDER
from unmask.store import Store, commit, processor

LENGTH = 100  # of a chain of empty tasks
WORK = dict(steps=3000, seeds=4)  # of `smoke`, to compare one worker with two
BACKENDS = {"one process": 1, "two processes": 2, "Ray, one worker": 1, "Ray, two workers": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="|".join(PARTS))
    parser.add_argument("--output", type=Path, default=FOLDER / "scaling.json")
    said = "of a hundred empty tasks each (default: 100)"
    parser.add_argument("--chains", type=int, default=100, metavar="N", help=said)
    said = "one of the ways to run, in place of all"
    parser.add_argument("--only", action="append", choices=BACKENDS, help=said)
    options = parser.parse_args()
    result = json.loads(options.output.read_text()) if options.output.exists() else {}
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "processor": processor()}
    for part in options.parts:
        rows = {}
        for name in options.only or BACKENDS:
            # each in a process of its own, whose memory is its own as well
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as alone:
                rows[name] = alone.submit(PARTS[part], name, options.chains).result()
            print(f"{part}, {name}:", *(f"{k} {v:,.4g}" for k, v in rows[name].items()), sep="  ")
        result[part] = about | {"cores": os.cpu_count(), "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


@contextlib.contextmanager
def workers(name, lab):
    if not name.startswith("Ray"):
        with parallel.local(lab, BACKENDS[name]) as found:
            yield found
        return
    import ray

    sizes = dict(num_cpus=BACKENDS[name], object_store_memory=80_000_000)
    if not ray.is_initialized():  # once: its workers are warm the next time
        ray.init(**sizes, include_dashboard=False, logging_level="ERROR")
    with cluster.connected(lab, None, None) as found:
        yield found


def empty_tasks(chains):
    def touch(lab, name):  # here, so that it travels as it is written
        (lab.store.root / f"{name}.json").touch()

    for chain in range(chains):
        for i in range(LENGTH):
            name, needed = f"{chain}-{i}", frozenset([f"{chain}-{i - 1}"] if i else [])
            yield Task(touch, (name,), (Output(name, name, 1),), (needed,))


def tasks(name, chains):
    """Empty tasks: time, and memory of the process that hands them out."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(experiment("smoke"), Store(folder))
        _ = lab.data
        with workers(name, lab) as found:
            parallel.run(list(empty_tasks(1)), found)  # workers have imported everything
            for path in Path(folder).glob("*.json"):
                path.unlink()
            before, began = memory(), time.perf_counter()
            parallel.run(list(empty_tasks(chains)), found)
            seconds = time.perf_counter() - began
    count = chains * LENGTH
    row = {"tasks": count, "seconds": seconds, "tasks a second": count / seconds}
    return row | {"ms a task": 1000 * seconds / count, "MB more": memory() - before}


def efficiency(name, _):
    """Seconds for the same trainings and measurements, from an empty store."""
    taken = []
    for changes in ({}, WORK):  # first a short one: workers have imported everything
        with tempfile.TemporaryDirectory() as folder:
            lab = Lab(experiment("smoke", **changes), Store(folder))
            _ = lab.data
            nodes = tables.graph(lab.experiment, ["levels", "segments"])
            with workers(name, lab) as found:
                began = time.perf_counter()
                parallel.run(tables.plan(lab, nodes, 2), found)
                taken.append(time.perf_counter() - began)
    return {"seconds": taken[-1]}


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS = {"tasks": tasks, "efficiency": efficiency}

if __name__ == "__main__":
    main()
