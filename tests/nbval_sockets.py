"""A pytest plugin for nbval: its kernels listen at sockets in a folder of their own, as a TCP port
that is free when it is chosen may be taken when the kernel comes to bind it."""

import functools
import tempfile

import nbval.kernel

_folder = tempfile.TemporaryDirectory()
_sockets = {"transport": "ipc", "ip": f"{_folder.name}/kernel"}
nbval.kernel.KernelManager = functools.partial(nbval.kernel.KernelManager, **_sockets)
