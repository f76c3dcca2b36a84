"""Networks and training as a textbook would write them, of torch's own parts: what tests compare
with and the bench runs beside."""

from itertools import chain, islice, pairwise, repeat

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2


class Block(nn.Module):
    def __init__(self, conv, norm, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        if inputs != outputs:
            self.conv3, self.norm3 = conv(inputs, outputs, 1, stride, bias=False), norm(outputs)

    def forward(self, x):
        shortcut = self.norm3(self.conv3(x)) if hasattr(self, "conv3") else x
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """On signals (batch, channels, length) with nn.Conv1d, on images with nn.Conv2d."""

    def __init__(self, conv, norm, channels, widths, blocks, classes, kernel=3, stride=1):
        super().__init__()
        self.stem = conv(channels, widths[0], kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = norm(widths[0])
        inputs = [widths[0], *(width for width in widths for _ in range(blocks))]
        strides = [1 if i % blocks or i == 0 else 2 for i in range(blocks * len(widths))]
        shapes = zip(inputs, inputs[1:], strides)
        self.blocks = nn.Sequential(*(Block(conv, norm, *shape) for shape in shapes))
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.linear(self.blocks(F.relu(self.norm(self.stem(x)))).flatten(2).mean(2))


def network(e):
    """The textbook's network of an experiment."""
    signals, images = (nn.Conv1d, nn.BatchNorm1d, 1), (nn.Conv2d, nn.BatchNorm2d, e.channels)
    widths = [e.width, 2 * e.width, 4 * e.width, 8 * e.width]
    match e.network:
        case "resnet1d":
            return ResNet(*signals, widths[:3], 1, e.classes)
        case "resnet1d-strided":
            return ResNet(*signals, widths[:3], 1, e.classes, kernel=5, stride=2)
        case "resnet8-strided":
            return ResNet(*images, widths[:3], 1, e.classes, kernel=4, stride=2)
        case "resnet20":
            return ResNet(*images, widths[:3], 3, e.classes)
        case "resnet18":
            return ResNet(*images, widths, 2, e.classes)
        case "lenet-300-100":
            sizes = e.channels * e.image_size**2, e.width, e.width // 3, e.classes
            first, second, last = (nn.Linear(*pair) for pair in pairwise(sizes))
            return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)


class Samples(list):
    """As torchvision's data sets: pairs of input and label, transformed one by one."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return self.transform(x), y


def loop(e, split):
    """The loop as most would write it: a function that takes so many steps."""
    crops = [v2.RandomCrop(e.image_size, 4), v2.RandomHorizontalFlip()]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])]
    moves = [v2.ToPILImage(), *(crops if e.augmentation == "crop-flip" else []), v2.ToImage()]
    samples = Samples(zip(split.x.cpu(), split.y.tolist()))
    samples.transform = nn.Identity() if e.dataset == "mnist1d" else v2.Compose(moves + scale)
    loader = DataLoader(samples, e.batch_size, shuffle=True, drop_last=True)
    module, device = network(e).to(split.device), split.device
    optimizer = torch.optim.SGD(module.parameters(), e.lr, e.momentum, weight_decay=e.weight_decay)
    masks = [(p, torch.ones_like(p)) for p in module.parameters() if p.dim() > 1]

    def run(count):
        epochs = chain.from_iterable(repeat(loader))
        for x, y in islice(epochs, count):
            optimizer.zero_grad()
            F.cross_entropy(module(x.to(device)), y.to(device)).backward()
            optimizer.step()
            with torch.no_grad():
                for parameter, mask in masks:
                    parameter.mul_(mask)

    return run
