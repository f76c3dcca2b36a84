"""Doing independent tasks in several processes, with progress a person can read.

One interface for one machine or a cluster: joblib. Processes share nothing but the store, so any of
its backends will do; progress is read off the store as well.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import processes
from .errors import Degenerate, UnmaskError
from .experiments import Experiment
from .store import Store

if TYPE_CHECKING:
    from .lab import Lab

# For workers on glibc, which reads this when a process starts: memory in large pages, kept between
# steps instead of being given back to the system and asked for again page by page. Spares 5 % of a
# training's time, and 10 % of an evaluation's or a Hessian's (`miniature`, one core of a Xeon).
# What is kept stays below what joblib takes for a leak.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=200000000:glibc.malloc.top_pad=33554432"
)


class Output(NamedTuple):
    """Its name in the store, what to call it in the progress line, and what it costs, in samples
    that are sent through a network."""

    name: str
    label: str
    work: float


BUSY = "busy"  # what comes of a task that another run is at


class Task(NamedTuple):
    """A call `function(lab, *args)` that puts into the store an output for each argument, in this
    order. What is `needed` for each is found there, by name. Each is `claimed` by a name while it
    is done, so that other runs on the same store leave it alone."""

    function: Callable
    args: tuple
    outputs: tuple[Output, ...]
    needed: tuple[frozenset[str], ...]
    claimed: tuple[str, ...]

    @property
    def work(self) -> float:
        return sum(output.work for output in self.outputs)

    def possible(self, store: Store) -> Task:
        """What of it can be done with what is in the store."""
        return self.only(all(name in store for name in needed) for needed in self.needed)

    def only(self, wanted: Iterable[bool]) -> Task:
        """A part of it."""
        each = zip(self.args, self.outputs, self.needed, self.claimed)
        some = [one for one, is_wanted in zip(each, wanted) if is_wanted]
        return Task(self.function, *(zip(*some) if some else [()] * 4))


def check_jobs(jobs: int | None, device: str = "cpu") -> int:
    """`jobs`; by default as many as this process may use cores, or one where they would share a
    GPU.
    Raises UnmaskError: it is not a whole number from 1 to 1,024."""
    import joblib

    if jobs is None:
        return 1 if device == "cuda" else joblib.cpu_count()
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= 1024:
        raise UnmaskError(f"jobs={jobs!r}: must be a whole number, 1 to 1,024")
    return jobs


def run(waves: Sequence[Sequence[Task]], lab: Lab, jobs: int) -> None:
    """Do all tasks, wave after wave, `jobs` at a time, one thread each.

    Several runs on one store share the work: what another is at comes last, and is waited for. What
    fails because a network has come to nothing is said at the end; what does not need it goes on.
    Processes that torchrun started do the tasks one by one, together.
    Raises Degenerate: what tasks raised. Raises UnmaskError: a worker was killed."""
    jobs = 1 if processes.count() > 1 else jobs  # those of torchrun do each task together
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC)
    # After a large Hessian joblib replaces a worker, which is as it should be.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
    failed, left = [], 0
    with Progress(waves, lab.store, jobs) as shown:
        for wave in waves:
            ready = [task.possible(lab.store) for task in wave]
            left += sum(len(task.outputs) for task in wave)
            left -= sum(len(task.outputs) for task in ready)
            ready = [task for task in ready if task.outputs]
            ended = _do_all(ready, lab, jobs, wait=False)
            others = [task for task, said in zip(ready, ended) if said == BUSY]
            ended += _do_all(others, lab, jobs, wait=True)
            failed += (said for said in ended if said and said != BUSY)
            shown.end_wave()
    if failed:
        need = f"; {left} networks or parts of tables need them, not tried" if left else ""
        said = f"{'; '.join(failed)}{need}; what is independent of them is in the store"
        raise Degenerate(said)


def _do_all(tasks: Sequence[Task], lab: Lab, jobs: int, wait: bool) -> list[str | None]:
    """What went wrong in each; or `BUSY`, if another run is at it and is not to be waited for."""
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        return [_do(task, lab, wait) for task in tasks]
    pool = joblib.Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs)
    where = lab.experiment.recipe, str(lab.store.root), os.getcwd(), os.getpid()
    try:
        one = joblib.delayed(_do_there)
        return pool(one(task, wait, lab.experiment, *where) for task in tasks)
    except TerminatedWorkerError as error:
        raise UnmaskError(
            "a worker process was killed, perhaps for want of memory; what was finished is in the "
            "store, and a smaller number of jobs needs less"
        ) from error


def _do_there(
    task: Task, wait: bool, experiment: Experiment, recipe: str, root: str, folder: str, parent: int
) -> str | None:
    if os.getppid() == parent:  # not where joblib has processes of another kind, or none
        _end_with(parent)
    os.chdir(folder)  # where a user's files are found; a worker may be older than that
    if experiment.recipe != recipe:
        raise UnmaskError(f"a file of {experiment.network} or {experiment.dataset} was changed")
    return _do(task, _lab(experiment, root, folder), wait)


@functools.cache
def _end_with(parent: int) -> None:
    """End this worker once its parent is gone, even if that was killed and could tell nobody."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(task: Task, lab: Lab, wait: bool) -> str | None:
    from .train import single_thread

    with lab.store.claimed(task.claimed, wait) as ours, single_thread():
        mine, said = task.only(name in ours for name in task.claimed), None
        try:
            if mine.args:
                task.function(lab, *mine.args)
        except Degenerate as error:
            missing = next(output for output in mine.outputs if output.name not in lab.store)
            said = f"{error} (in: {missing.label})"
        # what fails, fails again when the rest is waited for
        return BUSY if len(mine.args) < len(task.args) else said


@functools.lru_cache(maxsize=1)
def _lab(experiment: Experiment, root: str, folder: str) -> Lab:
    """Kept between the tasks of a worker in a `folder`, so that it reads the data set once."""
    from .lab import Lab

    return Lab(experiment, Store(root))


class _Unfinished:
    """What is left of a task, and for how long what comes next has been under way."""

    def __init__(self, task: Task):
        self.outputs, self.seconds = list(task.outputs), 0.0


class Progress:
    """Shows how many trainings and measurements are done, which are at work, how many remain, and
    the time left.

    A bar on a terminal; in a log file, a plain line every `interval` seconds."""

    def __init__(
        self, waves: Sequence[Sequence[Task]], store: Store, jobs: int, interval: float = 15
    ):
        self.store, self.jobs, self.interval = store, jobs, interval
        self.waves = [[_Unfinished(task) for task in wave] for wave in waves]
        self.total = sum(len(task.outputs) for wave in waves for task in wave)
        self.all_work = sum(task.work for wave in waves for task in wave)
        self.done_work = self.done_seconds = 0.0
        self.over = 0  # waves
        self.began = self.seen = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        if processes.rank() == 0:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        if processes.rank() == 0:
            self.thread.join()

    def _watch(self):
        from tqdm import tqdm

        bar = None
        if sys.stderr.isatty():
            shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            bar = tqdm(total=self.total, desc="unmask", dynamic_ncols=True, bar_format=shape)
        last, ended = self.began, False
        while not ended:
            ended = self.ended.wait(0.5)
            remaining, now = self.look(), time.monotonic()
            if bar:
                bar.n = self.total - self._outputs(self.waves)
                bar.set_postfix_str(f"{self._left()}; {self._now()}")
            elif ended or now - last >= self.interval:
                last = now
                print(self._line(remaining, now - self.began), file=sys.stderr, flush=True)
        if bar:
            bar.close()

    def _line(self, remaining: int, seconds: float) -> str:
        from tqdm import tqdm

        passed = tqdm.format_interval(seconds)
        done = self.total - self._outputs(self.waves)
        line = f"unmask: {done} of {self.total} done in {passed}"
        if remaining:
            line += f", {remaining} remain, {self._left()}; now {self._now()}"
        return line

    def look(self, seconds: float | None = None) -> int:
        """See what is in the store by now; how many outputs remain.

        `seconds`: since the last look, if not by the clock."""
        now = time.monotonic()
        passed, self.seen = now - self.seen if seconds is None else seconds, now
        for task in self._at_work():
            task.seconds += passed
        for task in itertools.chain.from_iterable(self.waves):
            while task.outputs and task.outputs[0].name in self.store:
                self.done_work += task.outputs.pop(0).work
                self.done_seconds += task.seconds
                task.seconds = 0.0
        return self._outputs(self.waves[self.over :])

    def end_wave(self) -> None:
        """What the wave at work has not put into the store by now, it will not."""
        self.over += 1

    @staticmethod
    def _outputs(waves: Sequence[Sequence[_Unfinished]]) -> int:
        return sum(len(task.outputs) for wave in waves for task in wave)

    def _at_work(self) -> list[_Unfinished]:
        # Tasks start in order and write their outputs in order: the first unfinished ones are those
        # at work.
        waves = ([task for task in wave if task.outputs] for wave in self.waves[self.over :])
        return next((tasks for tasks in waves if tasks), [])[: self.jobs]

    def seconds_left(self) -> float | None:
        """By the work that is left, at the rate that this run has shown until now.

        A wave lasts as long as its processes need that take its tasks in order, and its end is
        waited for."""
        if self.done_work < 0.02 * self.all_work or not self.done_seconds:
            return None  # start-up would count for too much
        rate, left = self.done_work / self.done_seconds, 0.0
        for wave in self.waves[self.over :]:
            ends = [0.0] * self.jobs
            for task in wave:
                work = sum(output.work for output in task.outputs)
                heapq.heapreplace(ends, ends[0] + max(0.0, work / rate - task.seconds))
            left += max(ends)
        return left

    def _left(self) -> str:
        from tqdm import tqdm

        seconds = self.seconds_left()
        return f"about {'?' if seconds is None else tqdm.format_interval(seconds)} left"

    def _now(self) -> str:
        return "; ".join(task.outputs[0].label for task in self._at_work())
