"""What the machine can do and what this library makes of it: what `make bench` runs.

Each training is measured beside the textbook loop (torchvision's data set, a DataLoader that
transforms image by image, an nn.Module, torch's optimizer, the mask multiplied in after each step),
in turns, in one process of one thread. Data are random, of the shapes of the real ones. What comes
out is printed and written, with versions and hardware, as JSON.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import combinations, product
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import textbook
import torch
import torch.nn.functional as F
from joblib.externals.loky import get_reusable_executor
from torch.utils.flop_counter import FlopCounterMode

from unmask import curvature, data, networks, parallel
from unmask.experiments import PRESETS, experiment
from unmask.findings import landscape
from unmask.lab import Lab
from unmask.parallel import MALLOC
from unmask.store import Store, commit, processor, versions
from unmask.train import Start, generator, replicates_at_once, train

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench.json")
    said = "an earlier output to compare with; what is not measured now is kept from it, marked"
    parser.add_argument("--against", type=_there, metavar="JSON", help=said)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    said = "also time the whole book, from an empty and a full store"
    parser.add_argument("--book", action="store_true", help=said)
    said = "a checkout of open_lth, to train LeNet there on the MNIST of `unmask run mnist_lenet`"
    parser.add_argument("--open-lth", type=_there, metavar="FOLDER", help=said)
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {"rows": {}}
    rows, rate = {}, matrix_rate(options.device)

    def note(name, row):
        rows[name], parts = row, [f"{key} {value:,.4g}" for key, value in row.items()]
        if earlier := before["rows"].get(name):
            times = earlier["milliseconds"] / row["milliseconds"]
            parts.append(f"{times:.2f} times as fast as before")
        print(f"{name:<42}{', '.join(parts)}", flush=True)

    for name in WORKS:
        note(name, alone(work, name, options.device, rate))
    note("10,000 empty tasks", alone(empty_tasks, 1))
    note("10,000 empty tasks, 2 at a time", empty_tasks(2))
    note("smoke, 2 processes against one", two_at_a_time())
    for name, code in PROGRAMS.items():
        note(name, {"milliseconds": 1000 * seconds(lambda code=code: python("-c", code), 5)})
    if options.open_lth:
        note("open_lth's training of LeNet-300-100", open_lth(options.open_lth, rows))
    if options.book:
        with tempfile.TemporaryDirectory() as store:
            for name in ("book, empty store", "book, full store"):
                note(name, alone(book, store))
    for name, row in before["rows"].items():
        rows.setdefault(name, {"from commit": before["commit"]} | row)
    device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
    result = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit()}
    result |= {"processor": processor(), "device": device, "cores": os.cpu_count(), "threads": 1}
    result["GFLOP a step"] = {name: operations(e) / 1e9 for name, e in PRESETS.items()}
    result |= {"matrix product (GFLOP/s)": round(rate / 1e9, 1), "versions": versions()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
    print(f"\nmatrix product: {rate / 1e9:.0f} GFLOP/s in one thread; written to {options.output}")


def _there(path):
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path}: there is no such file or folder")
    return Path(path).resolve()


def seconds(function, times=1):
    """The median of so many calls, on a GPU each until it has finished."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return median(taken)


def peak():
    """Most memory this process has used, in MB; on a GPU, most of the GPU's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def alone(function, *arguments):
    """What a function returns in a process of its own, whose peak memory is its own as well; on a
    GPU, which does not survive a fork, in this one."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return function(*arguments)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def python(*arguments, **options):
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, **options)


def matrix_rate(device):
    """Floating-point operations a second of a product of two large float32 matrices."""
    one, other = torch.randn(2, 1536, 1536, device=device)
    one @ other
    return 2 * 1536**3 / min(seconds(lambda: one @ other) for _ in range(10))


def operations(e):
    """Floating-point operations of one training step of one replicate."""
    network, inputs = networks.build(e), random_split(e, 4).as_inputs(4)
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(network(inputs.x), inputs.y).backward()
    return counted.get_total_flops() * e.batch_size // 4


def random_split(e, count):
    """Random samples of the experiment's shapes."""
    draws = generator("bench", count)
    y = torch.randint(e.classes, (count,), generator=draws)
    if e.dataset == "mnist1d":
        return data.Split(torch.randn(count, 1, e.image_size, generator=draws), y)
    shape, mean = (e.channels, e.image_size, e.image_size), torch.full((e.channels, 1, 1), 127.5)
    x = torch.randint(256, (count, *shape), generator=draws, dtype=torch.uint8)
    return data.Split(x, y, mean, mean / 2, e.augmentation)


def random_lab(preset, device, changes):
    """A lab with random data and an empty store."""
    e = experiment(preset, changes, device=device)
    lab = Lab(e, Store(tempfile.mkdtemp(dir=SCRATCH)))
    splits = (random_split(e, count) for count in (e.train_samples, e.test_samples))
    lab.data = data.Data(*(split.to(lab.device) for split in splits))
    return lab


# What is measured: functions of a lab, which return what is to be timed


def training(lab):
    e, mask = lab.experiment, lab.dense_mask
    starts = [Start(lab.initial(seed), mask, (seed,)) for seed in range(e.seeds)]
    return lambda: train(e, lab.data.train, starts)


def barrier(lab):
    ends = lab.initial(0), lab.initial(1)
    return lambda: lab.path(*ends)


def all_pairs(lab):
    pairs = list(combinations(map(lab.initial, range(12)), 2))
    return lambda: [lab.path(*pair, (0.5,)) for pair in pairs]


def lanczos(lab):
    sample = lab.data.train.as_inputs(1000)
    operator = curvature.hessian_operator(lab.network.eval(), lab.dense_mask, sample)
    return lambda: curvature.spectral_densities(operator, 1, (64,), generator("probe"))


def plane(lab):
    surface = landscape.plane(*map(lab.initial, range(3)), tuple(lab.dense_mask))
    points = list(product([i / 20 for i in range(21)], repeat=2))
    return lambda: [lab.evaluate(surface.state(*point)) for point in points]


SHORT = {"steps": 60, "rewind_steps": (0,)}
IMAGES = {"steps": 10, "rewind_steps": (0,), "train_samples": 2560}
WORKS = {
    "training miniature": (training, "miniature", SHORT),
    "training miniature_fine": (training, "miniature_fine", SHORT),
    "training mnist_lenet": (training, "mnist_lenet", SHORT | {"train_samples": 12_800}),
    "training mnist_resnet20": (training, "mnist_resnet20", IMAGES),
    "training cifar10_resnet8": (training, "cifar10_resnet8", IMAGES),
    "training cifar10_resnet20": (training, "cifar10_resnet20", IMAGES),
    "barrier, 11 points on 10,000 samples": (barrier, "miniature", {}),
    "all pairs of 12 levels, midpoints": (all_pairs, "miniature", {}),
    "64 Lanczos steps, 1,000 samples": (lanczos, "miniature", {}),
    "plane of 21 x 21 points": (plane, "miniature", {}),
}
PROGRAMS = {
    "start of unmask presets": "from unmask.cli import main; main(['presets'])",
    "imports of a notebook": "import unmask; from unmask.findings import tickets; unmask.lab.Lab",
}


def work(name, device, rate):
    """The row of one work; a training's is about one step of one replicate."""
    setup, preset, changes = WORKS[name]
    e = experiment(preset, changes)
    together = replicates_at_once(e, torch.device(device))
    lab = random_lab(preset, device, changes | {"seeds": together})
    ours = setup(lab)
    ours()
    used = {"peak MB": peak()}  # of ours alone
    if setup is not training:
        return {"milliseconds": 1000 * seconds(ours, 3)} | used
    theirs, count = textbook.loop(e, lab.data.train), operations(e)
    theirs(2)
    pairs = [(seconds(ours), seconds(lambda: theirs(e.steps))) for _ in range(5)]
    step = median(own for own, _ in pairs) / e.steps / together
    other = median(other for _, other in pairs) / e.steps
    row = {"milliseconds": 1000 * step, "per second": 1 / step, "GFLOP/s": count / step / 1e9}
    row |= {"of matrix product": count / step / rate, "replicates": together}
    row["textbook milliseconds"] = 1000 * other
    row["textbook ratio"] = median(other * together / own for own, other in pairs)
    return row | used


# What it costs to hand out tasks, and what two workers gain


def touch(lab, name):
    (lab.store.root / f"{name}.json").touch()


def empty_tasks(jobs, chains=100, length=100):
    """A task that puts an empty file into the store, in chains; memory is that of who hands out."""
    tasks, lab = [], random_lab("smoke", "cpu", {})
    for chain, i in product(range(chains), range(length)):
        needed, out = frozenset([f"{chain}-{i - 1}"] if i else []), f"{chain}-{i}"
        tasks.append(parallel.Task(touch, (out,), (parallel.Output(out, out, 1),), (needed,)))
    with parallel.local(lab, jobs) as found:
        parallel.run([task._replace(needed=(frozenset(),)) for task in tasks[:2]], found)  # starts
        before, taken = peak(), seconds(lambda: parallel.run(tasks[2:], found))
    row = {"milliseconds": 1000 * taken, "per second": len(tasks[2:]) / taken}
    if jobs == 1:  # whatever this process did before takes more
        return row | {"peak MB": peak() - before}
    get_reusable_executor().shutdown(kill_workers=True)
    return row


def two_at_a_time():
    """How many times as fast two processes are as one, start included, from an empty store."""

    def once(jobs):
        with tempfile.TemporaryDirectory(dir=SCRATCH) as store:
            options = "--set", "steps=1000", "--tables", "levels,segments", "--jobs", str(jobs)
            command = "-m", "unmask", "run", "smoke", *options
            quiet = {"env": os.environ | {"UNMASK_STORE": store}, "stderr": subprocess.DEVNULL}
            return seconds(lambda: python(*command, **quiet))

    pairs = [(once(1), once(2)) for _ in range(2)]
    times = median(one / two for one, two in pairs)
    return {"milliseconds": 1000 * median(two for _, two in pairs), "ours, times as fast": times}


# What open_lth as of 2021 needs to start with today's torch and numpy; its training loop is as it
# was. DistributedDataParallel no longer mixes with its base class.
OPEN_LTH = """
import runpy, sys
import numpy, torch
torch.nn.parallel.DistributedDataParallel = torch.nn.DataParallel
numpy.product = numpy.prod
sys.path.insert(0, ".")
sys.argv[0] = "open_lth.py"
runpy.run_path("open_lth.py", run_name="__main__")
"""


def open_lth(folder, rows):
    """A step of the same training in a checkout of open_lth, by its own command line: from a long
    and a short run, as start-up and one evaluation, at the end, are in both."""
    command = "-c", OPEN_LTH, "train", "--default_hparams=mnist_lenet_300_100"
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "open_lth_datasets").mkdir()
        (Path(home) / "open_lth_datasets/mnist").symlink_to(data.root())
        options = {"cwd": folder, "env": os.environ | {"HOME": home}}

        def run(steps):
            python(*command, f"--training_steps={steps}it", "--evaluate_only_at_end", **options)

        step = 1000 * (seconds(lambda: run(810)) - seconds(lambda: run(10))) / 800
    ours = rows["training mnist_lenet"]["milliseconds"]
    return {"milliseconds": step, "ours, times as fast": step / ours}


def book(store):
    """The whole book on all cores, as a reader builds it; the memory of its largest process."""
    environment = os.environ | {"UNMASK_STORE": store}
    environment.pop("GLIBC_TUNABLES", None)
    taken = seconds(lambda: python(str(ROOT / "book/build.py"), env=environment))
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {"milliseconds": 1000 * taken, "peak MB": used}


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:  # as the library's workers have it, from the start
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as SCRATCH:
        main()
