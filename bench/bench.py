"""What the machine can do and what this library makes of it: what `make bench` runs.

Each training is measured beside the textbook loop (torchvision's data set, a DataLoader that transforms image by image,
an nn.Module, torch's optimizer, the mask multiplied in after each step), in turns, in one process of one thread. Data
are random, of the shapes of the real ones. One table is printed and written, with versions and hardware, as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

import textbook
from unmask import barriers, curvature, landscape, networks, pruning
from unmask.chains import Runs
from unmask.data import Data, Split, root
from unmask.experiments import PRESETS, experiment
from unmask.parallel import MALLOC
from unmask.results import versions
from unmask.store import Store, commit, processor
from unmask.train import Start, evaluate, generator, single_thread, together, train

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench.json", help="where the JSON goes")
    parser.add_argument("--against", type=Path, metavar="JSON", help="an earlier output to compare with; rows not measured now are kept from it, marked")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--book", action="store_true", help="also time the whole book, from an empty and a full store")
    parser.add_argument("--open-lth", type=Path, metavar="PATH", help="a checkout of open_lth to run LeNet's training in")
    options = parser.parse_args()
    for path in filter(None, (options.against, options.open_lth)):
        if not path.exists():
            sys.exit(f"bench: {path}: there is no such file or folder")
    if options.open_lth and not (root() / "MNIST").is_dir():
        sys.exit(f"bench: open_lth trains on MNIST, and there is none in {root()}; `unmask run mnist_lenet` downloads it")
    before = json.loads(options.against.read_text()) if options.against else {"rows": {}}
    earlier = before["rows"]

    device = torch.device(options.device)
    rows = {}
    with single_thread():
        rate = matrix_rate(device)
        for name, work in works(device):
            if device.type == "cuda":  # which does not survive a fork
                torch.cuda.reset_peak_memory_stats()
                rows[name] = work(rate)
            else:
                rows[name] = alone(work, rate)
            print(line(name, rows[name], earlier.get(name)), flush=True)
        for name, row in start_up().items():
            rows[name] = row
            print(line(name, row, earlier.get(name)), flush=True)
        grown = growth(device)
        counted = {name: operations(e) / 1e9 for name, e in PRESETS.items()}
    if options.open_lth:
        name = "open_lth's training of LeNet-300-100"
        rows[name] = open_lth(options.open_lth.resolve(), rows["training mnist_lenet"])
        print(line(name, rows[name], earlier.get(name)), flush=True)
    if options.book:
        rows |= book(earlier)
    kept = {name: row for name, row in earlier.items() if name not in rows}  # not measured this time
    rows |= {name: {"from commit": before["commit"]} | row for name, row in kept.items()}
    result = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "processor": processor(),
              "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "cores": os.cpu_count(),
              "threads": 1, "growth": grown, "GFLOP a step": counted,
              "matrix product (GFLOP/s)": round(rate / 1e9, 1), "versions": versions(), "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nmatrix product: {rate / 1e9:.0f} GFLOP/s in one thread; written to {options.output}")


def works(device):
    """Name and function of everything that is measured."""
    for preset, changes in (("miniature", {}), ("miniature_fine", {}), ("mnist_lenet", {"train_samples": 12_800}),
                            ("mnist_resnet20", {"train_samples": 2560}), ("cifar10_resnet20", {"train_samples": 2560})):
        e = experiment(preset, **changes)
        yield f"training {preset}", lambda rate, e=e: training(e, device, rate)
    e = experiment("miniature")
    for name, work in (("barrier, 11 points on 10,000 samples", barrier), ("all pairs of 12 levels, midpoints", all_pairs),
                       ("64 Lanczos steps, 1,000 samples", lanczos), ("plane of 21 x 21 points", plane)):
        yield name, lambda rate, work=work: work(e, device)


def alone(work, rate):
    """The row of one work, measured in a process of its own: so its peak memory is its own as well."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(work(rate)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        row = json.loads(pipe.read() or "null")
    if os.waitpid(child, 0)[1] or row is None:
        sys.exit("bench: a measurement failed, see above")
    return row


def line(name, row, earlier):
    parts = [f"{name:<42}{row['milliseconds']:>10.3f} ms"]
    if "per second" in row:
        parts.append(f"{row['per second']:>8.0f} /s {row['GFLOP/s']:>7.1f} GFLOP/s ({row['of matrix product']:.0%} of the matrix "
                     f"product's) {row['textbook ratio']:>6.1f} times the textbook loop")
    if "ours, times as fast" in row:
        parts.append(f"ours is {row['ours, times as fast']:.1f} times as fast")
    if earlier:
        parts.append(f"{earlier['milliseconds'] / row['milliseconds']:.2f} times as fast as before")
    if "peak MB" in row:
        parts.append(f"{row['peak MB']} MB")
    return "  ".join(parts)


def timed(function, device=None):
    """Seconds that a call takes, on a GPU until it has finished."""
    if device and device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device and device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak():
    """Most memory this process has used, in MB; on a GPU, most of the GPU's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def matrix_rate(device):
    """Floating-point operations a second of a product of two large float32 matrices: what the machine can do."""
    one, other = torch.randn(2, 1536, 1536, device=device)
    one @ other
    return 2 * 1536 ** 3 / min(timed(lambda: one @ other, device) for _ in range(10))


def random_data(e, count, draw="bench"):
    """Random samples of the experiment's shapes."""
    draws = generator(draw)
    y = torch.randint(e.classes, (count,), generator=draws)
    if e.dataset == "mnist1d":
        return Split(torch.randn(count, 1, e.image_size, generator=draws), y)
    x = torch.randint(256, (count, e.channels, e.image_size, e.image_size), generator=draws).to(torch.uint8)
    mean = torch.full((e.channels, 1, 1), 127.5)
    return Split(x, y, mean, mean / 2, e.augmentation)


def training(e, device, rate):
    """One training step of one replicate, beside that of the textbook loop."""
    split = random_data(e, e.train_samples).to(device)
    mask = pruning.dense_mask(networks.build(e))
    starts = [Start(networks.initial_state(e, generator(i)), mask, (i,)) for i in range(together(e, device))]
    steps = 10 if e.network == "resnet20" else 60
    plain = textbook_loop(e, split, device)

    def ours():
        train(e.but(steps=steps + 1, rewind_steps=(0,)), split, starts, snapshots=[steps])

    ours()
    used = peak()  # of ours alone
    plain(2)
    pairs = [(timed(ours, device) / steps / len(starts), timed(lambda: plain(steps), device) / steps) for _ in range(ROUNDS)]
    count = operations(e)
    seconds = median(ours for ours, _ in pairs)
    return {"milliseconds": 1000 * seconds, "per second": 1 / seconds, "GFLOP/s": count / seconds / 1e9,
            "of matrix product": count / seconds / rate, "replicates": len(starts),
            "textbook milliseconds": 1000 * median(other for _, other in pairs),
            "textbook ratio": median(other / ours for ours, other in pairs), "peak MB": used}


def operations(e):
    """Floating-point operations of one training step of one replicate."""
    network, size = networks.build(e), 4
    inputs = random_data(e, size).first(size)
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(network(inputs.x), inputs.y).backward()
    return counted.get_total_flops() * e.batch_size // size


def start_up():
    """How long it takes until the first answer of the command, and until a notebook has imported what it needs."""
    works = {"start of unmask presets": "from unmask.cli import main; main(['presets'])",
             "imports of a notebook": "import unmask; from unmask import claims, figures; unmask.table"}
    rows = {}
    for name, code in works.items():
        seconds = [timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL))
                   for _ in range(ROUNDS)]
        rows[name] = {"milliseconds": 1000 * median(seconds)}
    return rows


class Images(Dataset):
    """As torchvision's data sets: an image from an array, transformed one by one."""

    def __init__(self, split, transform):
        self.x, self.y, self.transform = split.x.cpu(), split.y.tolist(), transform

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.transform(self.x[index]), self.y[index]


def textbook_loop(e, split, device):
    """The loop as most would write it: a function that takes so many steps."""
    if e.dataset == "mnist1d":
        transform = (lambda x: x)
    else:
        transform = v2.Compose([v2.ToPILImage(), *([v2.RandomCrop(e.image_size, 4), v2.RandomHorizontalFlip()]
                                                   if e.augmentation == "crop-flip" else []),
                                v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                                v2.Normalize([0.5] * e.channels, [0.25] * e.channels)])
    module = textbook.network(e).to(device)
    loader = DataLoader(Images(split, transform), e.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(module.parameters(), e.lr, e.momentum, weight_decay=e.weight_decay)
    masks = [(p, torch.ones_like(p)) for p in module.parameters() if p.dim() > 1]

    def run(steps):
        taken = 0
        while taken < steps:
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(module(x.to(device)), y.to(device)).backward()
                optimizer.step()
                with torch.no_grad():
                    for parameter, mask in masks:
                        parameter.mul_(mask)
                taken += 1
                if taken == steps:
                    return

    return run


def measured(function, device):
    function()
    return {"milliseconds": 1000 * median(timed(function, device) for _ in range(3)), "peak MB": peak()}


def setting(e, device, count):
    """A network, `count` states and data."""
    data = Data(random_data(e, e.train_samples).to(device), random_data(e, e.test_samples, "test").to(device))
    states = [networks.initial_state(e, generator(i)) for i in range(count)]
    return networks.build(e).to(device), states, data


def barrier(e, device):
    network, (one, other), data = setting(e, device, 2)
    return measured(lambda: barriers.segment(network, one, other, barriers.grid(11), data, ("test_error",)), device)


def all_pairs(e, device):
    network, states, data = setting(e, device, 12)

    def work():
        for i, one in enumerate(states):
            for other in states[:i]:
                barriers.segment(network, one, other, (0.5,), data, ("test_error",))

    return measured(work, device)


def lanczos(e, device):
    network, (state,), data = setting(e, device, 1)
    networks.load_state(network, state)
    operator = curvature.hessian_operator(network.eval(), pruning.dense_mask(network), data.train.first(1000))
    return measured(lambda: curvature.spectral_density(operator, 1, 64, generator("probe")), device)


def plane(e, device):
    network, states, data = setting(e, device, 3)
    surface = landscape.plane(*states, tuple(pruning.dense_mask(network)))

    def work():
        for x in np.linspace(0, 1, 21):
            for y in np.linspace(0, 1, 21):
                networks.load_state(network, surface.state(x, y))
                evaluate(network, data.test)

    return measured(work, device)


def growth(device):
    """Seconds against what one can have more of: [[how much, seconds], ...] by what it is.

    Short trainings of the miniature, 60 steps from the first; a barrier for the test samples.
    """
    e = experiment("miniature", steps=60, rewind_steps=(0,))
    split, mask = random_data(e, e.train_samples).to(device), pruning.dense_mask(networks.build(e))

    def chain(levels):
        with tempfile.TemporaryDirectory() as folder:
            runs = Runs(e.but(levels=levels, device=device.type), Store(folder))
            runs.level(0, 0, 0)  # which all have, and which reads the data
            return timed(lambda: runs.level(0, 0, levels), device)

    def replicates(count):
        starts = [Start(networks.initial_state(e, generator(i)), mask, (i,)) for i in range(count)]
        return timed(lambda: train(e, split, starts), device)

    def wide(width):
        wider = e.but(width=width)
        start = Start(networks.initial_state(wider, generator(0)), pruning.dense_mask(networks.build(wider)), (0,))
        return timed(lambda: train(wider, split, [start]), device)

    def tested(samples):
        network, (one, other), data = setting(e.but(test_samples=samples), device, 2)
        return timed(lambda: barriers.segment(network, one, other, barriers.grid(11), data, ("test_error",)), device)

    amounts = {"levels": (chain, (1, 2, 4, 8)), "seeds, side by side": (replicates, (1, 2, 4, 6)),
               "width": (wide, (4, 8, 16, 32)), "test samples": (tested, (1000, 4000, 10_000, 40_000))}
    return {name: [[amount, median(measure(amount) for _ in range(3))] for amount in those]
            for name, (measure, those) in amounts.items()}


# What open_lth as of 2021 needs to start with today's torch and numpy: nothing of this is in its training loop.
_OPEN_LTH = """
import runpy, sys
import numpy, torch
torch.nn.parallel.DistributedDataParallel = torch.nn.DataParallel  # the former no longer mixes with its base class
numpy.product = numpy.prod
sys.path.insert(0, ".")
sys.argv[0] = "open_lth.py"
runpy.run_path("open_lth.py", run_name="__main__")
"""


def open_lth(path, ours):
    """A step of the same training in a checkout of open_lth, by its own command line, on the MNIST of `data.root()`.

    The difference of a long and a short run: start-up and one evaluation, at the end, are in both.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "open_lth_datasets").mkdir()
        (Path(home) / "open_lth_datasets/mnist").symlink_to(root())
        for steps in (10, 810):
            command = [sys.executable, "-c", _OPEN_LTH, "train", "--default_hparams=mnist_lenet_300_100",
                       f"--training_steps={steps}it", "--evaluate_only_at_end"]
            done = []
            seconds[steps] = timed(lambda: done.append(subprocess.run(
                command, cwd=path, env=os.environ | {"HOME": home}, capture_output=True, text=True)))
            if done[0].returncode:
                sys.exit(f"bench: open_lth in {path} failed: {done[0].stderr.strip().splitlines()[-1]}")
    step = (seconds[810] - seconds[10]) / 800
    return {"milliseconds": 1000 * step, "ours, times as fast": 1000 * step / ours["milliseconds"]}


def book(earlier):
    """The whole book on all cores: from an empty store and from a full one."""
    with tempfile.TemporaryDirectory() as store:
        return {name: built(name, store, earlier.get(name)) for name in ("book, empty store", "book, full store")}


def built(name, store, earlier):
    environment = os.environ | {"UNMASK_STORE": store}
    environment.pop("GLIBC_TUNABLES", None)  # as a reader runs it
    with busy() as share:
        began = time.perf_counter()
        build = subprocess.Popen([sys.executable, str(ROOT / "book/build.py")], env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(build.pid, 0)  # of this build alone: its largest process
        seconds = time.perf_counter() - began
    if status:
        sys.exit(f"bench: {name}: the build failed")
    row = {"milliseconds": 1000 * seconds, "peak MB": used.ru_maxrss // 1024} | share
    print(line(name, row, earlier), flush=True)
    return row


@contextlib.contextmanager
def busy():
    """Which share of the time the cores of this machine were at work, by Linux's own count; empty elsewhere."""
    def jiffies():
        counts = list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]))
        return sum(counts), counts[3] + counts[4]  # all, idle

    share = {}
    if not Path("/proc/stat").exists():
        yield share
        return
    before = jiffies()
    yield share
    total, idle = (after - then for after, then in zip(jiffies(), before))
    if total:
        share["cores busy"] = 1 - idle / total


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:  # memory as the library's workers have it; read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": MALLOC})
    main()
