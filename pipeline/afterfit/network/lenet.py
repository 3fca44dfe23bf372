"""A small convolutional network for 28 x 28 pictures of one channel: LeCun, Bottou, Bengio, Haffner (1998), LeNet-5.

It differs from the paper's in what later versions dropped: pictures of 28 pixels, not padded to 32; every second-layer
map sees all six of the first; a linear last layer for distances to ten fixed patterns; and ReLU for tanh and the
largest of four pixels for their mean, unless the smooth one is asked for.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu, tanh


class LeNet(nn.Module):
    """Two convolutions of 5 x 5 with 6 and 16 channels, each pooled, and layers of 120, 84 and `num_labels` units."""

    def __init__(self, num_labels: int = 10, *, is_smooth: bool = False):
        super().__init__()
        self.is_smooth = is_smooth
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(16 * 4 * 4, 120)
        self.linear2 = nn.Linear(120, 84)
        self.linear3 = nn.Linear(84, num_labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, 1, 28, 28) to logits (B, num_labels)."""
        bent, pooled = (tanh, avg_pool2d) if self.is_smooth else (relu, max_pool2d)
        maps = pooled(bent(self.conv1(pixel_values)), 2)
        maps = pooled(bent(self.conv2(maps)), 2)
        return self.linear3(bent(self.linear2(bent(self.linear1(maps.flatten(1))))))


def lenet(num_labels: int = 10, *, is_smooth: bool = False) -> LeNet:
    """44,426 weights with ten labels.

    Args:
        num_labels: outputs.
        is_smooth: tanh and means of four pixels, as in the paper: no kinks, which a displacement of the weights may
            cross.
    """
    return LeNet(num_labels, is_smooth=is_smooth)
