"""Small regressions: four posteriors around networks with 50 hidden units, on the splits of the usual tables."""

import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

import afterfit
from afterfit.network.likelihoods import Gaussian
from paper_splits import read_splits

SETS = ("boston", "concrete", "energy", "yacht")
EPOCHS, BATCH, PRIOR, HELD_OUT = 200, 32, 1.0, 0.2
PARTS = (1.0, 0.5, 0.25, 0.12)
"""Of the error on held-out rows, that are tried as noise of a posterior."""
NUM_PROBES, RANK = 500, 400
WITHIN_90 = 1.6448536269514722


class Rows(NamedTuple):
    """Standardised."""

    inputs_NI: Tensor
    targets_N1: Tensor

    def items(self) -> list[dict[str, Tensor]]:
        """As `afterfit.fit` takes them."""
        return [{"input": x, "target": y} for x, y in zip(self.inputs_NI, self.targets_N1, strict=True)]


def trained(rows: Rows, noise: float, seed: int) -> nn.Module:
    """By Adam on the log joint density, with a step size that falls to zero."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(rows.inputs_NI.shape[1], 50), nn.ReLU(), nn.Linear(50, 1))
    count, each = len(rows.targets_N1), math.ceil(len(rows.targets_N1) / BATCH)
    steps = torch.optim.Adam(network.parameters(), lr=1e-2)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(steps, EPOCHS * each)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(count).chunk(each):
            squares = (network(rows.inputs_NI[chosen]) - rows.targets_N1[chosen]).square().mean() / noise
            prior = PRIOR / count * sum(weight.square().sum() for weight in network.parameters())
            steps.zero_grad()
            ((squares + prior) / 2).backward()
            steps.step()
            falling.step()
    return network.eval()


class Noise(NamedTuple):
    """Variances, chosen on rows that were held out of training."""

    of_map: float  # the mean squared error there: all that the point estimate does not know
    of_posterior: float  # the rest, where a posterior has its own part


def noises(rows: Rows, seed: int) -> Noise:
    """By a posterior of the GGN, trained and fitted again with each noise."""
    order = torch.randperm(len(rows.targets_N1), generator=torch.Generator().manual_seed(seed))
    left = int(HELD_OUT * len(order))
    kept, held = (Rows(rows.inputs_NI[part], rows.targets_N1[part]) for part in (order[left:], order[:left]))
    of_map = 0.1
    for _ in range(2):
        network = trained(kept, of_map, seed)
        with torch.no_grad():
            of_map = float((network(held.inputs_NI) - held.targets_N1).square().mean())
    scores = {}
    for noise in (of_map * part for part in PARTS):
        network, method = trained(kept, noise, seed), afterfit.GgnNystrom.model_validate({"num_probes": NUM_PROBES})
        found = afterfit.fit(network, kept.items(), method=method, likelihood=Gaussian(noise)).predict(
            {"input": held.inputs_NI}
        )
        scores[noise] = _log_density(found.mean, found.variance + noise, held.targets_N1)
    return Noise(of_map, max(scores, key=lambda noise: scores[noise]))


def methods(num_examples: int) -> Mapping[str, afterfit.Ella | afterfit.Slang | afterfit.HessianFree]:
    """Around the same networks; Laplace's prior precision by the marginal likelihood."""
    landmarks = min(num_examples, RANK)
    ella = {"num_landmarks": landmarks, "num_features": landmarks, "temperature": 1.0, "complement": "prior"}
    slang = {"rank": 5, "batch_size": BATCH, "epochs": 60, "learning_rate": 0.02, "prior_precision": PRIOR}
    return {
        "ella": afterfit.Ella.model_validate(ella),
        "slang": afterfit.Slang.model_validate({**slang, "num_draws": 64}),
        "hessian_free": afterfit.HessianFree.model_validate({"rank": RANK}),
    }


def _scores(name: str, split: int) -> Iterator[tuple[str, float]]:
    data = read_splits(f"uci_{name}")
    whole = data.standardised()
    train, test = (
        Rows(whole.inputs_DNI[split][rows], whole.targets_DN[split][rows][:, None])
        for rows in (data.train[split], data.test[split])
    )
    (of_map, noise), unit = noises(train, split), math.log(float(whole.scale_D[split]))
    network = trained(train, noise, split)
    with torch.no_grad():
        mean = network(test.inputs_NI)
    yield "map_ll", _log_density(mean, torch.full_like(mean, of_map), test.targets_N1) - unit
    yield "map_coverage90", _coverage(mean, torch.full_like(mean, of_map), test.targets_N1)
    yield "map_error_over_noise", float((mean - test.targets_N1).square().mean()) / of_map
    for which, method in methods(len(train.targets_N1)).items():
        posterior = afterfit.fit(network, train.items(), method=method, likelihood=Gaussian(noise))
        found = posterior.predict({"input": test.inputs_NI})
        variance = found.variance + noise
        yield f"{which}_ll", _log_density(found.mean, variance, test.targets_N1) - unit
        if which == "hessian_free":
            yield "noise_over_map", noise / of_map
            yield "prior_precision", posterior.facts["prior_precision"]
            yield "epistemic_part", float((found.variance / variance).mean())
            yield "coverage90", _coverage(found.mean, variance, test.targets_N1)


def _log_density(mean: Tensor, variance: Tensor, targets: Tensor) -> float:
    return float(-((targets - mean).square() / variance + (2 * math.pi * variance).log()).double().mean() / 2)


def _coverage(mean: Tensor, variance: Tensor, targets: Tensor) -> float:
    """Part of targets in central intervals of 90 percent."""
    return float(((targets - mean).abs() <= WITHIN_90 * variance.sqrt()).double().mean())


def regression_figures(num_splits: int) -> dict[str, float]:
    """Means over splits."""
    figures = {}
    for name in SETS:
        found: dict[str, list[float]] = {}
        for split in range(num_splits):
            for what, value in _scores(name, split):
                found.setdefault(f"{name}_{what}", []).append(value)
        figures |= {what: fmean(values) for what, values in found.items()}
        print({what: round(fmean(values), 4) for what, values in found.items()}, flush=True)
    return figures
