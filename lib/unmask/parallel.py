"""Doing independent tasks in several processes, with progress a person can read.

One interface for one machine or a cluster: joblib. Processes share nothing but the store, so any of its backends will
do; progress is read off the store as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from . import processes
from .errors import UnmaskError
from .experiments import Experiment
from .store import Store


# For workers on glibc, which reads this when a process starts: memory in large pages, kept between steps instead of being
# given back to the system and asked for again page by page. Spares 5 % of a training's time, and 10 % of an
# evaluation's or a Hessian's (`miniature`, one core of a Xeon). What is kept stays below what joblib takes for a leak.
MALLOC = ("glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=200000000:"
          "glibc.malloc.top_pad=33554432")


class Task(NamedTuple):
    """A call `function(runs, *args)` that puts `outputs` into the store, in this order."""

    function: str  # "module:function", so that a task is small to send and the worker imports what it needs
    args: tuple
    outputs: tuple[tuple[str, str], ...]  # name in the store, what to call it in the progress line


def check_jobs(jobs: int | None, device: str = "cpu") -> int:
    """`jobs`; by default as many as this process may use cores, or one where they would share a GPU ("cuda").

    Raises:
        UnmaskError: it is not a whole number of 1 or more.
    """
    import joblib

    if jobs is None:
        return 1 if device == "cuda" else joblib.cpu_count()
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise UnmaskError(f"jobs={jobs!r}: must be a whole number, 1 or more")
    return jobs


def run(waves: Sequence[Sequence[Task]], experiment: Experiment, store: Store, jobs: int) -> None:
    """Do all tasks whose outputs are not all in the store, wave after wave, `jobs` at a time, one thread each.

    Processes that torchrun started do them one by one instead, each together.

    Raises:
        UnmaskError: what a task raised; or a worker was killed.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waves = [[task for task in wave if not all(name in store for name, _ in task.outputs)] for wave in waves]
    if not any(waves):
        return
    if processes.count() > 1:
        tasks = [task for wave in waves for task in wave]
        with Progress(tasks, store, 1) if processes.rank() == 0 else contextlib.nullcontext():
            for task in tasks:
                _do(task, experiment, str(store.root))
        return
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC)
    # After a large Hessian joblib replaces a worker, which is as it should be.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
    with Progress([task for wave in waves for task in wave], store, jobs):
        for wave in filter(None, waves):
            try:
                joblib.Parallel(n_jobs=min(jobs, len(wave)), batch_size=1, pre_dispatch=jobs)(
                    joblib.delayed(_do)(task, experiment, str(store.root)) for task in wave)
            except TerminatedWorkerError as error:
                raise UnmaskError("a worker process was killed, perhaps for want of memory; what was finished is in "
                                  "the store, and a smaller number of jobs needs less") from error


def _do(task: Task, experiment: Experiment, root: str) -> None:
    import importlib

    from .train import single_thread

    module, function = task.function.split(":")
    with single_thread():
        getattr(importlib.import_module(f"unmask.{module}"), function)(_runs(experiment, root), *task.args)


@functools.lru_cache(maxsize=1)
def _runs(experiment: Experiment, root: str):
    """Kept between the tasks of a worker, so that it reads the data set once."""
    from .chains import Runs

    return Runs(experiment, Store(root))


class Progress:
    """Shows how many trainings and measurements are done, which are at work, how many remain, and the time left.

    A bar on a terminal; in a log file, a plain line every `interval` seconds.
    """

    def __init__(self, tasks: Sequence[Task], store: Store, jobs: int, interval: float = 15):
        self.store, self.jobs, self.interval = store, jobs, interval
        self.waiting = [[output for output in task.outputs if output[0] not in store] for task in tasks]
        self.total = sum(map(len, self.waiting))
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()

    def _watch(self):
        from tqdm import tqdm

        if sys.stderr.isatty():
            with tqdm(total=self.total, desc="unmask", smoothing=0, dynamic_ncols=True) as bar:
                while True:
                    done = self.ended.wait(0.5)
                    bar.update(self.total - self._remaining() - bar.n)
                    bar.set_postfix_str(self._now(), refresh=True)
                    if done:
                        return
        last = 0.0
        while True:
            done = self.ended.wait(0.5)
            now = time.monotonic() - self.began
            if done or now - last >= self.interval:
                last = now
                self._print_line(now)
            if done:
                return

    def _print_line(self, seconds: float) -> None:
        from tqdm import tqdm

        remaining = self._remaining()
        finished = self.total - remaining
        line = f"unmask: {finished} of {self.total} done in {tqdm.format_interval(seconds)}"
        if remaining:
            left = tqdm.format_interval(seconds / finished * remaining) if finished else "?"
            line += f", {remaining} remain, about {left} left; now {self._now()}"
        print(line, file=sys.stderr, flush=True)

    def _remaining(self) -> int:
        self.waiting = [[output for output in outputs if output[0] not in self.store] for outputs in self.waiting]
        return sum(map(len, self.waiting))

    def _now(self) -> str:
        # Tasks start in order and write their outputs in order: the first unfinished ones are those at work.
        at_work = [outputs[0][1] for outputs in self.waiting if outputs]
        return "; ".join(at_work[:self.jobs])
