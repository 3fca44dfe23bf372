"""Residual networks for 32 x 32 pictures: He, Zhang, Ren, Sun (2015), arXiv:1512.03385, section 4.2.

6 n + 2 layers: three stages of n blocks with 16, 32 and 64 channels, shortcuts without weights (option A).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; `stride` 2 halves height and width."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.more = channels - in_channels

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in, H, W) to (B, channels, H / stride, W / stride)."""
        shortcut = maps[:, :, :: self.stride, :: self.stride]
        if self.more:
            shortcut = pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        inner = relu(self.bn1(self.conv1(maps)))
        return relu(self.bn2(self.conv2(inner)) + shortcut)


class CifarResnet(nn.Module):
    """The network of 6 n + 2 layers; all images of a batch have one size, divisible by 4."""

    def __init__(self, blocks_a_stage: int, num_labels: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks_a_stage, 16, 16)
        self.layer2 = _stage(blocks_a_stage, 16, 32)
        self.layer3 = _stage(blocks_a_stage, 32, 64)
        self.linear = nn.Linear(64, num_labels)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, 3, 32, 32) to logits (B, num_labels)."""
        maps = relu(self.bn1(self.conv1(pixel_values)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(torch.mean(maps, dim=(2, 3)))


def _stage(num_blocks: int, in_channels: int, channels: int) -> nn.Sequential:
    first = Block(in_channels, channels, stride=channels // in_channels)
    return nn.Sequential(first, *(Block(channels, channels, stride=1) for _ in range(num_blocks - 1)))


def resnet20(num_labels: int = 10) -> CifarResnet:
    """269,722 weights."""
    return CifarResnet(3, num_labels)


def resnet32(num_labels: int = 10) -> CifarResnet:
    """464,154 weights."""
    return CifarResnet(5, num_labels)


def resnet44(num_labels: int = 10) -> CifarResnet:
    """658,586 weights."""
    return CifarResnet(7, num_labels)


def resnet56(num_labels: int = 10) -> CifarResnet:
    """853,018 weights."""
    return CifarResnet(9, num_labels)
