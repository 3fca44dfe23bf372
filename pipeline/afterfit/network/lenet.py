"""A small convolutional network for 28 x 28 pictures of one channel: LeCun, Bottou, Bengio, Haffner (1998), LeNet-5.

It differs from the paper's in what later versions dropped: pictures of 28 pixels, not padded to 32; ReLU for the scaled
tanh; the largest of four pixels for their trained mean; every second-layer map sees all six of the first; a linear last
layer for distances to ten fixed patterns.
"""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class LeNet(nn.Module):
    """Two convolutions of 5 x 5 with 6 and 16 channels, each pooled, and layers of 120, 84 and `num_labels` units."""

    def __init__(self, num_labels: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(16 * 4 * 4, 120)
        self.linear2 = nn.Linear(120, 84)
        self.linear3 = nn.Linear(84, num_labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, 1, 28, 28) to logits (B, num_labels)."""
        maps = max_pool2d(relu(self.conv1(pixel_values)), 2)
        maps = max_pool2d(relu(self.conv2(maps)), 2)
        return self.linear3(relu(self.linear2(relu(self.linear1(maps.flatten(1))))))


def lenet(num_labels: int = 10) -> LeNet:
    """44,426 weights with ten labels."""
    return LeNet(num_labels)
