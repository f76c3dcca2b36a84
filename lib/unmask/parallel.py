"""Doing tasks that need each other's outputs, side by side, with progress a person can read.

A task starts as soon as what it needs is there. Who does it is behind one small interface,
`Workers`: this process, several of this machine, or a cluster's. They share nothing but the store.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from graphlib import TopologicalSorter
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from . import processes, remote
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
BACKENDS = ("local", "ray")


class Output(NamedTuple):
    """Its name in the store, what to call it in the progress line, and what it costs, in samples
    that are sent through a network."""

    name: str
    label: str
    work: float


class Task(NamedTuple):
    """A call `function(lab, *args)` that puts into the store an output for each argument, in this
    order. What is `needed` for each is found there, by name. `networks`: how many are trained side
    by side; `memory`: how many bytes it takes beside networks and data."""

    function: Callable
    args: tuple
    outputs: tuple[Output, ...]
    needed: tuple[frozenset[str], ...]
    networks: int = 1
    memory: float = 0

    @property
    def work(self) -> float:
        return sum(output.work for output in self.outputs)

    def only(self, wanted: Iterable[bool]) -> Task:
        """A part of it."""
        each = zip(self.args, self.outputs, self.needed)
        some = [one for one, is_wanted in zip(each, wanted) if is_wanted]
        args, outputs, needed = zip(*some) if some else [()] * 3
        return self._replace(args=args, outputs=outputs, needed=needed)


class Outcome(NamedTuple):
    """What came of a task, by the names of its outputs: what is in the store, and what was left
    alone as another run is at it. How long it took, in seconds, and what went wrong."""

    put: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    seconds: float = 0.0
    failure: UnmaskError | None = None


class Workers:
    """Who does tasks, `slots` at a time as far as is known by now; here, this process.

    `where`: words for the progress line."""

    slots, where = 1, ""

    def __init__(self, lab: Lab):
        self.lab = lab

    def room(self) -> int:
        """How many tasks may be under way."""
        return self.slots

    def submit(self, task: Task) -> Future:
        future = Future()
        future.set_result(_do(task, self.lab))
        return future

    def outcome(self, future: Future, task: Task) -> Outcome:
        """Of a future that is done.
        Raises UnmaskError: what would stop all other tasks as well."""
        return future.result()


class _Processes(Workers):
    """Several processes of this machine."""

    def __init__(self, lab: Lab, jobs: int, executor):
        self.slots, self.executor, self.there = jobs, executor, where_of(lab)

    def submit(self, task: Task) -> Future:
        return self.executor.submit(do_there, task, *self.there)


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


def check_backend(backend: str, address: str | None = None) -> None:
    """Raises UnmaskError: there is none of that name, or it is not installed, or takes no address,
    or not together with torchrun."""
    if backend not in BACKENDS:
        raise UnmaskError(f"backend={backend!r}: must be one of {', '.join(BACKENDS)}")
    if backend == "local" and address is not None:
        raise UnmaskError(f"address={address!r}: is that of a cluster; with backend='ray'")
    if backend == "ray" and find_spec("ray") is None:
        raise UnmaskError("backend='ray': Ray is not installed; pip install -e '.[ray]'")
    if backend == "ray" and processes.count() > 1:
        raise UnmaskError("backend='ray': without torchrun; Ray starts its own processes")


@contextlib.contextmanager
def local(lab: Lab, jobs: int | None = None) -> Iterator[Workers]:
    """So many processes of this machine, which end with the block if it fails; or this one."""
    import joblib

    jobs = joblib.effective_n_jobs(check_jobs(jobs, lab.device.type))
    if jobs == 1 or processes.count() > 1:  # those of torchrun do each task together
        yield Workers(lab)
        return
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # After a large Hessian it replaces a worker, which is as it should be.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
    variables = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC), "OMP_NUM_THREADS": "1"}
    options = dict(timeout=300, env=variables, initializer=_end_with, initargs=(os.getpid(),))
    executor = get_reusable_executor(jobs, **options)
    try:
        yield _Processes(lab, jobs, executor)
    except BaseException as error:
        executor.shutdown(kill_workers=True)
        if isinstance(error, TerminatedWorkerError):
            said = "a worker process was killed, perhaps for want of memory; what was finished is "
            said += "in the store, and a smaller number of jobs needs less"
            raise UnmaskError(said) from error
        raise


def where_of(lab: Lab) -> tuple[Experiment, str, str, str]:
    """What another process makes a lab like this one from; see `do_there`."""
    return lab.experiment, lab.experiment.recipe, str(lab.store.root), os.getcwd()


def do_there(task: Task, experiment: Experiment, recipe: str, root: str, folder: str) -> Outcome:
    """Do a task in another process.
    Raises UnmaskError: the process does not see the same files."""
    for path, seen in ((root, remote.exists(Store(root).root)), (folder, os.path.isdir(folder))):
        if not seen:
            raise UnmaskError(f"{platform.node()} does not see {path}, which all have to")
    os.chdir(folder)  # where a user's files are found; a worker may be older than that
    if experiment.recipe != recipe:
        raise UnmaskError(f"a file of {experiment.network} or {experiment.dataset} was changed")
    return _do(task, _lab(experiment, root, folder))


def _end_with(parent: int) -> None:
    """End this worker once its parent is gone, even if that was killed and could tell nobody."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(task: Task, lab: Lab) -> Outcome:
    from .train import single_thread

    began, names, failure = time.perf_counter(), [o.name for o in task.outputs], None
    with lab.store.claimed(names) as ours, single_thread():
        mine = task.only(name in ours for name in names)
        try:
            if mine.args:
                task.function(lab, *mine.args)
        except Exception as error:
            if isinstance(error, UnmaskError) and not isinstance(error, Degenerate):
                raise  # bad input, or a store that cannot be written: all others would fail as well
            labels = [o.label for o in mine.outputs if o.name not in lab.store]
            where = f"(in: {(labels or [mine.outputs[0].label])[0]})"
            if isinstance(error, Degenerate):
                failure = Degenerate(f"{error} {where}")
            else:
                traceback.print_exc()
                failure = UnmaskError(f"{type(error).__name__}: {error} {where}")
        put = frozenset(name for name in ours if name in lab.store)
    return Outcome(put, frozenset(names) - ours, time.perf_counter() - began, failure)


@functools.lru_cache(maxsize=1)
def _lab(experiment: Experiment, root: str, folder: str) -> Lab:
    """Kept between the tasks of a worker in a `folder`, so that it reads the data set once."""
    from .lab import Lab

    return Lab(experiment, Store(root))


def run(tasks: Sequence[Task], found: Workers) -> None:
    """Do all tasks, each as soon as what it needs is there; first those after which the most work
    has to be done one after the other.

    Several runs on one store share the work: what another is at, and what needs it, comes last, and
    is tried again until it is there. What fails is said at the end; what does not need it goes on.
    Raises Degenerate: that is all that went wrong. Raises UnmaskError: something else did, or a
    worker was killed."""
    failed = []
    with Progress(tasks, found) as shown:
        while shown.open:
            before = len(shown.open)
            failed += _walk(shown, found)
            if len(shown.open) == before:  # all of it is another run's
                time.sleep(1)
    if failed:
        said = "; ".join(map(str, failed))
        if shown.untried:
            said += f"; {shown.untried} networks or parts of tables need them, not tried"
        kind = Degenerate if all(isinstance(e, Degenerate) for e in failed) else UnmaskError
        raise kind(f"{said}; what is independent of them is in the store")


def _walk(shown: Progress, found: Workers) -> list[UnmaskError]:
    """Once through the graph of tasks, for what can be done of each; what went wrong."""
    order, ready, failed = TopologicalSorter(shown.parents), [], []
    order.prepare()
    started: dict[Future, int] = {}

    def release(*done: int) -> None:
        """These are done with; what waited for them and nothing else is ready."""
        order.done(*done)
        for index in order.get_ready():
            heapq.heappush(ready, (-shown.longest[index], index))

    release()
    while order.is_active():
        # Start what can be started.
        while ready and len(started) < found.room():
            index = heapq.heappop(ready)[1]
            task = shown.start(index)
            if task.args:
                started[found.submit(task)] = index
            else:
                release(index)
        # Wait for the next to end, or for a node to come, and see what came of it.
        time.sleep(1 if ready and not started else 0)
        for future in wait(started, timeout=1, return_when=FIRST_COMPLETED).done:
            index = started.pop(future)
            outcome = found.outcome(future, shown.running[index][1])
            failed += [outcome.failure] if outcome.failure else []
            shown.end(index, outcome)
            release(index)
    return failed


class Progress:
    """Shows how many trainings and measurements are done, are being done, wait and have failed, and
    the time left.

    A bar on a terminal; in a log file, a plain line every 15 seconds."""

    def __init__(self, tasks: Sequence[Task], found: Workers, clock: Callable = time.monotonic):
        self.tasks, self.workers = tasks, found
        # names of outputs that are yet to come, and of those that will not
        self.open, self.lost = {o.name for task in tasks for o in task.outputs}, set()
        self.total, self.done, self.untried = len(self.open), 0, 0
        self.all_work = sum(task.work for task in tasks)
        self.done_work = self.done_seconds = 0.0
        self.running: dict[int, tuple[float, Task]] = {}  # since when, and what of it
        # which tasks each one needs an output of, by their indices
        maker = {output.name: i for i, task in enumerate(tasks) for output in task.outputs}
        needed = [maker.keys() & frozenset().union(*task.needed) for task in tasks]
        self.parents = {i: {maker[name] for name in names} for i, names in enumerate(needed)}
        # of each task, the work that has to be done from its start on, one after the other
        self.longest, after = [task.work for task in tasks], [0.0] * len(tasks)
        for index in reversed(list(TopologicalSorter(self.parents).static_order())):
            self.longest[index] += after[index]
            for parent in self.parents[index]:
                after[parent] = max(after[parent], self.longest[index])
        self.clock, self.began = clock, clock()
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

    def start(self, index: int) -> Task:
        """Of a task, what can be done now, which starts."""
        left = self.tasks[index].only(o.name in self.open for o in self.tasks[index].outputs)
        futile = left.only(not self.lost.isdisjoint(needed) for needed in left.needed)
        self.untried += len(futile.args)
        self._lose(output.name for output in futile.outputs)
        possible = (self.open.isdisjoint(n) and self.lost.isdisjoint(n) for n in left.needed)
        task = left.only(possible)
        if task.args:
            self.running[index] = self.clock(), task
        return task

    def end(self, index: int, outcome: Outcome) -> None:
        """What was started of a task has been done, but for what another run is at."""
        _, task = self.running.pop(index)
        self.done += len(outcome.put)
        self.open -= outcome.put
        self._lose({output.name for output in task.outputs} - outcome.put - outcome.busy)
        self.done_work += sum(o.work for o in task.outputs if o.name not in outcome.busy)
        self.done_seconds += outcome.seconds

    def _lose(self, names: Iterable[str]) -> None:
        self.lost.update(names)
        self.open -= self.lost

    def _watch(self):
        bar = None
        if sys.stderr.isatty():
            shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            bar = tqdm(total=self.total, desc="unmask", dynamic_ncols=True, bar_format=shape)
        last, ended = self.began, False
        while not ended:
            ended, now = self.ended.wait(0.5), self.clock()
            if bar:
                bar.n = self.done
                bar.set_postfix_str(self._rest())
            elif ended or now - last >= 15:
                last = now
                print(self.line(), file=sys.stderr, flush=True)
        if bar:
            bar.close()

    def line(self) -> str:
        passed = tqdm.format_interval(self.clock() - self.began)
        rest = self._rest()
        return f"unmask: {self.done} of {self.total} done in {passed}{rest and ', '}{rest}"

    def _rest(self) -> str:
        at_work = [task for _, task in self.running.copy().values()][: self.workers.slots]
        count, lost = sum(len(task.args) for task in at_work), len(self.lost)
        waiting = len(self.open) - count
        seconds = self.seconds_left()
        left = "?" if seconds is None else tqdm.format_interval(seconds)
        said = [f"{count} running{self.workers.where}"] if count else []
        said += [f"{waiting} waiting"] if waiting else []
        said += [f"{lost} failed"] if lost else []
        said += [f"about {left} left"] if count or waiting else []
        labels = "; ".join(task.outputs[0].label for task in at_work[:4])
        return ", ".join(said) + (f"; now {labels}" if labels else "")

    def seconds_left(self) -> float | None:
        """By the work that is left, at the rate that this run has shown until now: what all workers
        need for it, or one for what has to be done one after the other, if that is more."""
        if self.done_work < 0.02 * self.all_work or not self.done_seconds:
            return None  # start-up would count for too much
        rate, passed = self.done_work / self.done_seconds, dict.fromkeys(range(len(self.tasks)), 0)
        for index, (since, task) in list(self.running.items())[: self.workers.slots]:
            passed[index] = min(self.clock() - since, task.work / rate)
        names, each = self.open.copy(), enumerate(self.tasks)
        left = {i: sum(o.work for o in task.outputs if o.name in names) for i, task in each}
        left = {index: work for index, work in left.items() if work}
        shared = sum(work / rate - passed[index] for index, work in left.items())
        alone = max((self.longest[index] / rate - passed[index] for index in left), default=0)
        return max(shared / max(1, self.workers.slots), alone)
