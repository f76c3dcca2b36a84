"""Doing tasks on a Ray cluster; see `parallel`."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import cached_property

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from . import data, networks, parallel
from .errors import UnmaskError
from .lab import Lab
from .parallel import Outcome, Task

RETRIES = 3  # of a task whose worker or node is lost
# What a process takes with nothing in it but Python and torch, in memory and on a GPU, in bytes.
EMPTY, CONTEXT = 600e6, 500e6
SHARING = 8  # processes on one GPU at most; their kernels run in turns


@contextlib.contextmanager
def connected(lab: Lab, jobs: int | None, address: str | None) -> Iterator[parallel.Workers]:
    """The workers of the cluster at an address; by default, see `ray.init`.
    Raises UnmaskError: no cluster answers there."""
    before = ray.is_initialized()
    try:
        options = dict(ignore_reinit_error=True, include_dashboard=False)
        ray.init(address, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RayError) as error:
        said = str(error).partition("\n")[0]
        raise UnmaskError(f"address={address!r}: no Ray cluster answers there ({said})") from error
    try:
        yield Cluster(lab, jobs)
    finally:
        if not before:
            ray.shutdown()  # which ends what is being done


class Cluster(parallel.Workers):
    """All nodes of a Ray cluster, as they come and go. A task takes one core, as it computes in one
    thread, the memory that `needed` says and, where there are GPUs, a `share` of one."""

    def __init__(self, lab: Lab, jobs: int | None):
        self.lab, self.jobs, self.looked = lab, jobs, -math.inf
        self.there = parallel.where_of(lab)
        variables = {"GLIBC_TUNABLES": parallel.MALLOC}
        options = dict(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": variables})
        self.gpu = None  # or a GPU's memory
        if lab.experiment.device != "cpu" and ray.cluster_resources().get("GPU"):
            self.gpu = ray.get(ray.remote(num_gpus=1)(_gpu_memory).remote())
            options["max_calls"] = 1  # a process keeps the GPU that it had first
        self.do = ray.remote(**options)(parallel.do_there)
        self.room()

    def room(self) -> int:
        """As many again as can be done at a time, so that no node waits for this process, and that
        a cluster which grows with what is asked of it does."""
        if time.monotonic() > self.looked + 1:
            self.looked = time.monotonic()
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            what, part = ("CPU", 1) if self.gpu is None else ("GPU", self.share(1))
            slots = [int(node.get(what, 0) / part) for node in nodes]
            self.slots = min(sum(slots), self.jobs or math.inf)
            self.where = f" on {sum(map(bool, slots))} nodes"
        return self.jobs or max(2, 2 * self.slots)

    def submit(self, task: Task) -> Future:
        size = task.networks, task.memory
        options = {"memory": EMPTY + self.needed(*size)}
        if self.gpu is not None:
            options |= {"num_gpus": self.share(*size)}
        return self.do.options(**options).remote(task, *self.there).future()

    def outcome(self, future: Future, task: Task) -> Outcome:
        try:
            return future.result()
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            said = f"{type(error).__name__} after {RETRIES} retries (in: {task.outputs[0].label})"
            return Outcome(failure=UnmaskError(f"its worker was lost: {said}"))

    def needed(self, together: int, more: float = 0) -> float:
        """Bytes: the data; of each network that is trained side by side, weights, gradients,
        velocity and mask, and what a batch keeps for the backward pass; and what a table says."""
        return self._data + together * self._network + more

    def share(self, together: int, more: float = 0) -> float:
        """How much of a GPU: by memory, so that as many as fit have it together."""
        return 1 / max(1, min(SHARING, self.gpu // (CONTEXT + self.needed(together, more))))

    @cached_property
    def _data(self) -> float:
        whole = [split for split in self.lab.data if isinstance(split, data.Split)]
        return sum(part.nbytes for split in whole for part in split if torch.is_tensor(part))

    @cached_property
    def _network(self) -> float:
        e, network = self.lab.experiment, networks.build(self.lab.experiment)
        saved = [_saved(network, self.lab.data.train.as_inputs(n).x.cpu()) for n in (2, 4)]
        weights = sum(parameter.numel() for parameter in network.parameters())
        return 16 * weights + e.batch_size * (saved[1] - saved[0]) / 2


def _saved(network: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward one."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), print):
        network(x)
    return sum(sizes)


def _gpu_memory() -> int:
    found = torch.cuda.is_available()
    return torch.cuda.get_device_properties(0).total_memory if found else 0
