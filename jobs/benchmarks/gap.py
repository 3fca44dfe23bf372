"""One-dimensional data with a gap: what a network does not know between them."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import afterfit
from afterfit.network.likelihoods import Gaussian

NOISE = 0.1
"""Standard deviation."""
GAP = 0.8
"""Half of its width; data lie up to 2."""
NUM = 60


def data() -> tuple[Tensor, Tensor]:
    """Inputs and targets (N, 1)."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.arange(NUM) % 2 == 0, 1.0, -1.0).double()
    inputs_N = side * (GAP + (2 - GAP) * torch.rand(NUM, generator=generator, dtype=torch.float64))
    noise_N = NOISE * torch.randn(NUM, generator=generator, dtype=torch.float64)
    return inputs_N[:, None], (torch.sin(3 * inputs_N) + noise_N)[:, None]


def trained(inputs: Tensor, targets: Tensor) -> nn.Module:
    """At a minimum of the loss with a prior precision of 1."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    steps = torch.optim.LBFGS(network.parameters(), max_iter=3000, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        steps.zero_grad()
        squares = (network(inputs) - targets).square().sum() / NOISE**2
        total = (squares + sum(weight.square().sum() for weight in network.parameters())) / 2
        total.backward()
        return total

    steps.step(loss)
    return network.eval()


def gap_figures(picture: Path) -> dict[str, float]:
    """Mean variance in the middle of the gap over that at the data."""
    inputs, targets = data()
    network = trained(inputs, targets)
    items = [{"input": one, "target": target} for one, target in zip(inputs, targets, strict=True)]
    method = afterfit.HessianFree.model_validate({"prior_precision": 1.0, "rank": 50, "network": "auto"})
    posterior = afterfit.fit(network, items, method=method, likelihood=Gaussian(NOISE**2))
    grid = torch.linspace(-3, 3, 121, dtype=torch.float64)[:, None]
    found = posterior.predict({"input": grid})
    inside = found.variance[(grid[:, 0].abs() < GAP / 2)].mean()
    at_data = posterior.predict({"input": inputs}).variance.mean()
    _draw(picture, grid, found.mean, found.variance.sqrt(), inputs, targets)
    return {
        "gap_variance_ratio": float(inside / at_data),
        "gap_is_exact": float(posterior.facts["kind"] == "exact"),
        "gap_plateau_decades": float(posterior.facts["decades"]),
        "gap_plateau_spread": float(posterior.facts["spread"]),
    }


def _draw(picture: Path, grid: Tensor, mean: Tensor, deviation: Tensor, inputs: Tensor, targets: Tensor) -> None:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    places, mean, deviation = grid[:, 0], mean[:, 0], deviation[:, 0]
    panel.fill_between(places, mean - 2 * deviation, mean + 2 * deviation, alpha=0.3, label="two deviations")
    panel.plot(places, mean, label="trained network")
    panel.plot(inputs[:, 0], targets[:, 0], "k.", markersize=4, label="data")
    panel.set_ylim(-4, 4)
    panel.set_xlabel("input")
    panel.set_title("Variance of the output by Hessian-free Laplace", loc="left")
    panel.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
