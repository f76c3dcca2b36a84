"""Networks: plain modules that map a batch to logits, their state as a dict of tensors.

Several replicates of a network for signals, of the same shape but with weights and data of their
own, are one network of as many channel groups. Its state is theirs, concatenated along the first
dimension of every tensor; side by side they share the cost of starting each operation, and each
computes to the bit what it would alone. Of other networks every replicate is one of its own.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import own, processes
from .errors import UnmaskError
from .experiments import Experiment

State = dict[str, Tensor]


class SignalNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` for one image, whose rows or columns are the samples of the batch.

    In this layout a channel's batch statistics are those of one group of one image, and torch's
    group-norm kernel computes them several times faster than its batch-norm kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not torch.is_grad_enabled():
            return super().forward(x)
        if not self.training:  # the same in operations that forward differentiation is faster in
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return torch.addcmul(shift[:, None, None], x, scale[:, None, None])
        channels, count = x.shape[1], x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(
            x, self.weight, self.bias, 1, channels, count, channels, self.eps
        )
        with torch.no_grad():
            unbiased = (rstd[0].pow(-2) - self.eps) * (count / (count - 1))
            self.running_mean.lerp_(mean[0], self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return y


class ImageNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes together, on any device (torch's
    `SyncBatchNorm`: GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        # without gradients statistics are taken anew, by each process of all samples
        if not self.training or processes.count() == 1 or not torch.is_grad_enabled():
            return super().forward(x)
        wide = x.float()
        mean = processes.mean(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance = processes.mean(centred.square().mean((0, 2, 3)))
        count = processes.count() * x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def conv_image(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    """Convolution of images (batch, channels, height, width)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut, projected by a 1 x 1 convolution where the shape changes
    (ResNet, option B)."""

    def __init__(self, conv, norm, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, 3, stride), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, 3, 1), norm(outputs)
        self.project = inputs != outputs
        if self.project:
            self.conv3, self.norm3 = conv(inputs, outputs, 1, stride), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y))
        shortcut = self.norm3(self.conv3(x)) if self.project else x
        return y.add_(shortcut).relu_()


class SignalLinear(nn.Linear):
    """`nn.Linear` for each replicate: (replicates, batch, features) to (replicates, batch,
    channels)."""

    def __init__(self, features: int, channels: int, replicates: int):
        super().__init__(features, replicates * channels)
        self.replicates = replicates

    def forward(self, x: Tensor) -> Tensor:
        if self.replicates == 1:  # spares the gradient a copy
            return F.linear(x.flatten(0, 1), self.weight, self.bias)[None]
        weight = self.weight.unflatten(0, (self.replicates, -1))
        bias = self.bias.unflatten(0, (self.replicates, -1))
        return torch.stack([F.linear(*each) for each in zip(x, weight, bias)])


class ResNet1d(nn.Module):
    """Residual network for signals: a stem, three blocks of w, 2w, 4w channels, mean over
    positions, linear layer.

    Takes (batch, replicates, length), returns logits (replicates * batch, classes). Inside, the
    batch is the width of one image (1, replicates * channels, length, batch): convolutions of
    height k and width 1 compute what `nn.Conv1d` would, on rows of contiguous samples that keep a
    CPU busy where rows of 40 points do not."""

    def __init__(self, e: Experiment, replicates: int, stem_kernel: int, stem_stride: int):
        super().__init__()
        w = e.width

        def conv(inputs, outputs, kernel, stride):
            along = (kernel, 1), (stride, 1), (kernel // 2, 0)
            channels = replicates * inputs, replicates * outputs
            return nn.Conv2d(*channels, *along, groups=replicates, bias=False)

        def norm(channels):
            return SignalNorm(replicates * channels)

        self.stem, self.norm = conv(1, w, stem_kernel, stem_stride), norm(w)
        shapes = (w, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2)
        self.blocks = nn.Sequential(*(Block(conv, norm, *shape) for shape in shapes))
        self.linear = SignalLinear(4 * w, e.classes, replicates)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 2, 0)[None]
        x = self.norm(self.stem(x)).relu_()
        x = self.blocks(x)[0].mean(1)
        return self.linear(x.unflatten(0, (self.linear.replicates, -1)).mT).flatten(0, 1)


class LeNet(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers of w and w / 3 units, fully connected.

    Takes (batch, channels, size, size), returns logits (batch, classes). As in OpenLTH, the output
    layer is not pruned."""

    never_pruned = ("output.weight",)

    def __init__(self, e: Experiment):
        super().__init__()
        self.hidden1 = nn.Linear(e.channels * e.image_size**2, e.width)
        self.hidden2 = nn.Linear(e.width, e.width // 3)
        self.output = nn.Linear(e.width // 3, e.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden2(self.hidden1(x.flatten(1)).relu_()).relu_())


class ResNet(nn.Module):
    """Residual network for small images (He et al. 2016, section 4.2): a stem, stages of w, 2w, ...
    channels with so many blocks each, mean over positions, linear layer. Every stage but the first
    halves the image, and so may the stem.

    Takes (batch, channels, size, size), returns logits (batch, classes)."""

    def __init__(self, e: Experiment, stages: int, blocks: int, stem_kernel=3, stem_stride=1):
        super().__init__()
        self.stem = conv_image(e.channels, e.width, stem_kernel, stem_stride)
        self.norm = ImageNorm(e.width)
        built, before = [], e.width
        for stage in range(stages):
            width = e.width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                built.append(Block(conv_image, ImageNorm, before, width, stride))
                before = width
        self.blocks = nn.Sequential(*built)
        self.linear = nn.Linear(before, e.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu_()
        return self.linear(self.blocks(x).mean((2, 3)))


def ResNet50(e: Experiment) -> nn.Module:
    """torchvision's."""
    from torchvision.models import resnet50

    return resnet50(num_classes=e.classes, norm_layer=ImageNorm)


def build(experiment: Experiment, replicates: int = 1) -> nn.Module:
    """The experiment's network, with weights still to be loaded.
    Raises UnmaskError: several replicates, and not of a network for signals; or a user's cannot be
    made."""
    network = experiment.known_network
    if replicates > 1 and not network.signals:
        raise UnmaskError(f"network={experiment.network!r}: is trained one at a time")
    grouped = {"replicates": replicates} if network.signals else {}
    return globals()[network.family](experiment, **grouped, **network.arguments)


def own_network(e: Experiment) -> nn.Module:
    """A network of a library or of the user's: see `own`."""
    place, _, name = e.network.rpartition(":")
    # it initialises itself, by drawing from the global generator
    with own.foreign(f"network={e.network!r}:"), torch.random.fork_rng([]):
        if place == "torchvision":
            from torchvision.models import get_model

            network = get_model(name, weights=None, num_classes=e.classes)
        elif place == "timm":
            import timm

            network = timm.create_model(name, num_classes=e.classes, in_chans=e.channels)
        else:
            network = own.find(e.network)()
    if not isinstance(network, nn.Module):
        said = f"returns {type(network).__name__}, not a torch.nn.Module"
        raise UnmaskError(f"network={e.network!r}: {said}")
    if any(map(nn.parameter.is_lazy, [*network.parameters(), *network.buffers()])):
        raise UnmaskError(f"network={e.network!r}: has lazy layers; give them their sizes")
    return network


def check_own(e: Experiment, network: nn.Module, x: Tensor) -> None:
    """Try a user's network on some inputs.
    Raises UnmaskError: it does not take them, in training or in evaluation, or its output is not
    one logit for each class, or random in evaluation; a parameter is not finite, of another type
    than the others, or belongs to two modules or networks; what it keeps could not be stored, or
    resumed; or it does not initialise itself by torch's generator alone."""

    def refuse(said: str):
        raise UnmaskError(f"network={e.network!r}: {said}")

    every = dict(network.named_parameters(remove_duplicate=False))
    if tied := sorted(every.keys() - dict(network.named_parameters()).keys()):
        refuse(f"{', '.join(tied)} is the same tensor as another; what is tied cannot be pruned")
    if {*map(id, every.values())} & {*map(id, build(e).parameters())}:
        refuse("has the same parameters when its function is called again; make them anew")
    if odd := sorted(every.keys() - network.state_dict().keys()):
        refuse(f"{odd[0]} is not in its state_dict() by that name")
    kinds = {str(p.dtype): name for name, p in network.named_parameters()}
    if len(kinds) > 1 or not kinds.keys() <= {"torch.float32", "torch.float64"}:
        found = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        refuse(f"{found}; all parameters must be float32, or float64")
    for name, tensor in network.state_dict().items():
        if not torch.is_tensor(tensor) or not tensor.isfinite().all():
            refuse(f"{name} is not finite to begin with, or no tensor")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            refuse(f"{name} has momentum=None, by which a training cannot be resumed; give it one")
    one, other = (initial_state(e, torch.Generator().manual_seed(0)) for _ in range(2))
    if odd := [name for name in one if not torch.equal(one[name], other[name])]:
        refuse(f"{odd[0]} is another each time, although torch's generator is seeded")
    for training in (True, False):
        said = f"network={e.network!r}: does not take inputs of shape {tuple(x.shape)}:"
        draws = torch.random.fork_rng([])
        with own.foreign(said), torch.no_grad(), draws, own.global_draws():
            tried = copy.deepcopy(network).train(training)
            logits, again = (tried(x.clone()) for _ in range(2))
            if training:  # what it leaves behind, and what would be stored of that
                stored = copy.deepcopy(network)
                load_state(stored, state_of(tried))
                kept = [each.eval()(x.clone()) for each in (tried, stored)]
        given = tuple(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        if given != (len(x), e.classes):
            when = "in training" if training else "in evaluation"
            refuse(f"gives {given} for {len(x)} inputs {when}, not ({len(x)}, {e.classes})")
    if not torch.allclose(logits, again, rtol=0, atol=0, equal_nan=True):
        refuse("gives other logits when called again in evaluation; dropout has to heed .training")
    if not torch.allclose(*kept, rtol=0, atol=0, equal_nan=True):
        refuse("keeps what its state_dict() lacks, such as a buffer that is not persistent")


def check_size(experiment: Experiment) -> None:
    """Raises UnmaskError: training the network takes more memory than this machine has."""
    if own.is_own(experiment.network):
        return
    with torch.device("meta"):  # counted, not made
        weights = sum(p.numel() for p in build(experiment).parameters())
    # weights, gradients, velocity and mask, of float32
    needed, there = 16 * weights, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        said = f"{experiment.network} has {weights:,} weights, and training it takes"
        sizes = f"{needed / 1e9:,.0f} GB of memory; this machine has {there / 1e9:,.0f}"
        raise UnmaskError(f"width={experiment.width}: {said} {sizes}")


@contextlib.contextmanager
def kernels(network: nn.Module, precision: str = "float32"):
    """The kernels to compute with, inside.

    On a GPU: cuDNN's deterministic ones, and no lower precision than asked for. On a CPU: for
    signals torch's own convolution, which for networks this small is faster than oneDNN's."""
    with contextlib.ExitStack() as stack:
        # some builds warn about TF32 whenever oneDNN's flags are touched
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", ".*TF32")
        # attention as it is written, whose shortcut for evaluation is not differentiated forward
        mha = torch.backends.mha
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        if isinstance(network, ResNet1d):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if torch.cuda.is_available():
            tf32, matmul = precision == "tf32", torch.backends.cuda.matmul
            stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = tf32
            cudnn = dict(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
            stack.enter_context(torch.backends.cudnn.flags(**cudnn))
        if precision == "bf16":
            device = next(network.parameters()).device
            # no cache: it would keep weights as they were when they were first cast
            cast = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
            stack.enter_context(cast)
        yield


def layout(precision: str, x: Tensor) -> torch.memory_format:
    """How images, or the kernels applied to them, should lie in memory: channels last, but on a GPU
    in float32, for which cuDNN is twice as fast with channels first (seen on an H100)."""
    first = x.is_cuda and precision == "float32"
    return torch.channels_last if x.dim() == 4 and not first else torch.contiguous_format


def prepare_recording(network: nn.Module, e: Experiment) -> None:
    """Leave out what a graph would only do for nothing: another layout of kernels before each use,
    and to count batches, which nobody reads."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not e.known_network.signals:
            module.to(memory_format=layout(e.precision, module.weight))
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None


def stack(states: Sequence[State]) -> State:
    """The state (or mask) of replicates from the states (or masks) of each."""
    if len(states) == 1:
        return states[0]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def unstack(state: State, replicates: int) -> list[State]:
    """The state of each replicate; the inverse of `stack`."""
    if replicates == 1:
        return [{name: tensor.clone() for name, tensor in state.items()}]
    parts = {name: tensor.chunk(replicates) for name, tensor in state.items()}
    return [{name: part[i].clone() for name, part in parts.items()} for i in range(replicates)]


def initial_state(experiment: Experiment, generator: torch.Generator) -> State:
    """A network's state at initialisation, drawn from `generator`: a user's own as it initialises
    itself; of others

    Kaiming-normal weights, batch-norm scale uniform in [0, 1], shifts and biases zero (as OpenLTH
    and the authors' closest public configuration do)."""
    if own.is_own(experiment.network):
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            return state_of(build(experiment))
    network = build(experiment)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, generator=generator)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return state_of(network)


def state_of(network: nn.Module) -> State:
    """A copy of the parameters and batch-norm statistics, by name, on the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load_state(network: nn.Module, state: State) -> None:
    """Copy `state` into the network.
    Raises UnmaskError: a name or a shape does not fit."""
    into = network.state_dict()
    counted = {name for name in (*into, *state) if name.endswith("num_batches_tracked")}
    if odd := sorted((set(into) ^ set(state)) - counted):
        there = "the state" if odd[0] in state else "the network"
        raise UnmaskError(f"{odd[0]!r} is in {there} alone: the two do not fit")
    for name, tensor in state.items():
        if name in into and into[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, {tuple(into[name].shape)} in the network"
            raise UnmaskError(f"{name!r} has shape {shapes}: the two do not fit")
    for name in into.keys() & state.keys():
        into[name].copy_(state[name])
