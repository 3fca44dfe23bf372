"""Networks that several benchmarks take, with random weights."""

from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    ViTConfig,
)


def vit(width: int, depth: int, heads: int, attention: str = "sdpa") -> nn.Module:
    """A Hugging Face ViT for 32 x 32 images in patches of 4 x 4, and 10 classes."""
    config = ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    config.num_labels = 10
    return AutoModelForImageClassification.from_config(config, attn_implementation=attention)


def minilm() -> nn.Module:
    """A Hugging Face BERT of MiniLM's size, 33 M weights, for sentences of 3 classes; plain attention."""
    config = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)
    config.num_labels = 3
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


class Perceptron(nn.Module):
    """Two hidden layers for pictures of 8 x 8 and 10 classes: h^2 + 76 h + 10 weights, h being `hidden`."""

    def __init__(self, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.layers(pixel_values)
