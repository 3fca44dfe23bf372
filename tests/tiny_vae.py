"""A variational autoencoder whose noise is an input, and its loss: what has a loss, but no likelihood of targets."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NUM_PIXELS, NUM_LATENT = 6, 2


class TinyVae(nn.Module):
    """Pixels and noise to logits of the pixels, and mean and log variance of the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(NUM_PIXELS, 8), nn.Tanh(), nn.Linear(8, 2 * NUM_LATENT))
        self.decoder = nn.Sequential(nn.Linear(NUM_LATENT, 8), nn.Tanh(), nn.Linear(8, NUM_PIXELS))

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """(B, pixels + 2 latent)."""
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        logits = self.decoder(mean + (log_variance / 2).exp() * noise)
        return torch.cat([logits, mean, log_variance], dim=1)


def negative_elbo(outputs: Tensor, inputs: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
    """Of each example, in nats, with one fixed draw of the latent."""
    assert targets is None
    logits, mean, log_variance = outputs.split([NUM_PIXELS, NUM_LATENT, NUM_LATENT], dim=1)
    pixels = inputs["pixels"].to(logits)
    missed = nn.functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(dim=1)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
    return missed + divergence


def mean_loss(outputs: Tensor, inputs: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
    """Not one number for each example."""
    return negative_elbo(outputs, inputs, targets).mean()


def vae_items(num: int) -> list[dict[str, Tensor]]:
    """Named by their number."""
    generator = torch.Generator().manual_seed(3)
    pixels = (torch.rand(num, NUM_PIXELS, generator=generator, dtype=torch.float64) > 0.5).double()
    noise = torch.randn(num, NUM_LATENT, generator=generator, dtype=torch.float64)
    return [{"pixels": pixels[number], "noise": noise[number]} for number in range(num)]
