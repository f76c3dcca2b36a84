"""The networks as a textbook would write them, of torch's own layers: what tests compare with and the bench runs beside."""

import torch.nn.functional as F
from torch import nn


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
    """On (batch, channels, length) with nn.Conv1d and nn.BatchNorm1d, on images with nn.Conv2d and nn.BatchNorm2d."""

    def __init__(self, conv, norm, channels, widths, blocks, classes, kernel=3, stride=1):
        super().__init__()
        self.stem = conv(channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.norm = norm(widths[0])
        inputs = [widths[0], *(width for width in widths for _ in range(blocks))]
        strides = [1 if i % blocks or i == 0 else 2 for i in range(blocks * len(widths))]
        self.blocks = nn.Sequential(*(Block(conv, norm, *shape) for shape in zip(inputs, inputs[1:], strides)))
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.linear(self.blocks(F.relu(self.norm(self.stem(x)))).flatten(2).mean(2))


def network(e):
    """The textbook's network of an experiment."""
    w = e.width
    match e.network:
        case "resnet1d":
            return ResNet(nn.Conv1d, nn.BatchNorm1d, 1, (w, 2 * w, 4 * w), 1, e.classes)
        case "resnet1d-strided":
            return ResNet(nn.Conv1d, nn.BatchNorm1d, 1, (w, 2 * w, 4 * w), 1, e.classes, kernel=5, stride=2)
        case "resnet20":
            return ResNet(nn.Conv2d, nn.BatchNorm2d, e.channels, (w, 2 * w, 4 * w), 3, e.classes)
        case "resnet18":
            return ResNet(nn.Conv2d, nn.BatchNorm2d, e.channels, (w, 2 * w, 4 * w, 8 * w), 2, e.classes)
        case "lenet-300-100":
            return nn.Sequential(nn.Flatten(), nn.Linear(e.channels * e.image_size ** 2, w), nn.ReLU(),
                                 nn.Linear(w, w // 3), nn.ReLU(), nn.Linear(w // 3, e.classes))
