"""Several processes that train one network together, started by torchrun: one for each GPU, or on a
CPU.

Each computes its share of every batch, and all hold the same weights at all times. Without torchrun
there is one process, and nothing here does anything. torch is imported only where there are
several.
"""

import contextlib
import os

from .errors import UnmaskError

_joined = None  # torch.distributed, once this process has joined


def join() -> None:
    """Join the processes that torchrun started; with GPUs each takes the one of its local rank.
    Raises UnmaskError: there are more processes than GPUs."""
    global _joined
    if _joined or "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return
    import torch
    import torch.distributed.nn.functional

    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and local >= gpus:
        said = f"has no GPU of its own: there are {gpus}"
        raise UnmaskError(f"process {local} of this machine {said}")
    backend, device = "gloo", None
    if gpus:
        backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", local)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend, device_id=device)
    _joined = torch.distributed


def leave() -> None:
    """The end of working together."""
    global _joined
    if _joined:
        _joined.destroy_process_group()
        _joined = None


def count() -> int:
    """How many processes train together."""
    return _joined.get_world_size() if _joined else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes."""
    return _joined.get_rank() if _joined else 0


def wait() -> None:
    """Until all are here."""
    if _joined:
        _joined.barrier()


@contextlib.contextmanager
def first_alone():
    """The first process goes through the block while the others wait; then they, finding what it
    left.
    Raises UnmaskError: in all processes, if the block does in the first."""
    failure = [None]
    if _joined and rank() > 0:
        _joined.broadcast_object_list(failure)
        if failure[0] is not None:
            raise UnmaskError(failure[0])
    try:
        yield
    except UnmaskError as error:
        failure = [str(error)]
        raise
    finally:
        if _joined and rank() == 0:
            _joined.broadcast_object_list(failure)


def mean(values):
    """The mean of a tensor over processes; gradients pass through it."""
    return _joined.nn.functional.all_reduce(values) / count() if _joined else values
