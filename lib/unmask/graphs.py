"""A training step of several runs: one after the other, or on a GPU side by side, as branches of
one recorded graph."""

import functools
import itertools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import networks, own
from .experiments import Experiment

BRANCHES = 8  # at most; more gain little


class Loop:
    """A step of several runs (`train.Run`), one after the other."""

    def __init__(self, e: Experiment, runs: Sequence):
        self.experiment, self.runs = e, runs
        self.x = self.y = self.rate = None

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> None:
        """Of inputs (batch, replicates * channels, ...) and labels (replicates * batch)."""
        self.x, self.y, self.rate = x, y, rate
        self.loop()

    def loop(self) -> None:
        for index in range(len(self.runs)):
            self.advance(index)

    def advance(self, index: int) -> None:
        """A step of one run, of inputs of its own that are laid out as if there were no others."""
        count = len(self.runs)
        x, y = self.x.chunk(count, 1)[index], self.y.chunk(count)[index]
        if count > 1 or torch.is_tensor(self.rate):
            layout = networks.layout(self.experiment.precision, x)
            x = torch.empty_like(x, memory_format=layout).copy_(x)
        self.runs[index].advance(x, y, self.rate)


class Graph(Loop):
    """The same on a GPU, recorded as a CUDA graph in which each run is a branch.

    To start the operations of a small network takes longer than to do them, and one alone leaves
    most of a GPU idle; a graph is started at once, and its branches run side by side. Each run gets
    to the bit what it would get alone: a graph whose first steps are others is not used."""

    graph = None

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> None:
        if self.x is None:
            self.x, self.y, self.rate = x.clone(), y.clone(), torch.tensor(rate, device=x.device)
            self._record()
        self.x.copy_(x)
        self.y.copy_(y)
        self.rate.fill_(rate)
        if self.graph is None:
            self.loop()
        else:
            self.graph.replay()

    def _record(self) -> None:
        """Make the graph, if it does as the loop; no run has moved afterwards."""
        graph, before = torch.cuda.CUDAGraph(), self._state()
        self._branch()  # in which libraries set up what may not be recorded
        looped = self._after(before, self.loop)
        # other threads may ask for memory meanwhile
        options = dict(stream=_streams(self.x.device)[-1], capture_error_mode="thread_local")
        # some versions leave the stream of a recording that fails as the current one
        here = torch.cuda.stream(torch.cuda.current_stream())
        try:
            with here, torch.cuda.graph(graph, **options):
                self._branch()
            replayed = self._after(before, graph.replay)
            exact = dict(rtol=0, atol=0, equal_nan=True)
            if all(torch.allclose(*both, **exact) for both in zip(looped, replayed)):
                self.graph = graph
            else:
                said = "recorded are not the same as the loop's"
        except torch.OutOfMemoryError:
            raise  # fewer go on: see `train.train_all`
        except RuntimeError as error:  # torch's, of what cannot be recorded here
            said = f"cannot be recorded ({own.one_line(error)})"
        self._restore(before)
        if self.graph is None:
            print(f"unmask: steps {said}; each operation is started alone", file=sys.stderr)

    def _branch(self) -> None:
        here, streams = torch.cuda.current_stream(), _streams(self.x.device)[:-1]
        begun = here.record_event()
        try:
            for index, stream in zip(range(len(self.runs)), itertools.cycle(streams)):
                stream.wait_event(begun)
                # Whatever a branch takes memory for is taken in its own stream: that of another
                # would be given to the next branch while this one still uses it.
                with torch.cuda.stream(stream):
                    self.advance(index)
        finally:  # a recording ends where it began
            for stream in streams[: len(self.runs)]:
                here.wait_stream(stream)

    def _after(self, before: list[Tensor], step: Callable[[], None]) -> list[Tensor]:
        """What some steps make of a state; so many that a race would be seen."""
        self._restore(before)
        for _ in range(3):
            step()
        return self._state()

    def _state(self) -> list[Tensor]:
        return [tensor.clone() for run in self.runs for tensor in run.changing()]

    def _restore(self, before: list[Tensor]) -> None:
        for tensor, was in zip((t for run in self.runs for t in run.changing()), before):
            tensor.copy_(was)


@functools.cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    """Of each branch, and one to record in; always the same, as libraries keep memory for each."""
    return [torch.cuda.Stream(device) for _ in range(BRANCHES + 1)]
