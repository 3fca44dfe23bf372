"""ELLA of laplace-torch 0.3 beside ours: same weights, images, landmarks, features and prior, in one run.

    python jobs/benchmarks/peer_ella.py --peer PYTHON     # PYTHON has laplace-torch; ours runs in this one

The sides run in turn, ours, theirs, ours, theirs, one thread each, and each reports CPU seconds of the fit and of the
predictions, without imports, loading and decoding. The subset is what laplace-torch manages in minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

NUM_TRAIN, NUM_TEST, NUM_LANDMARKS, NUM_FEATURES, PRIOR_PRECISION = 128, 64, 64, 20, 1000.0
BATCH = 8
ROUNDS = 2


def ours(tensors: dict[str, Any], network: Any) -> dict[str, Any]:
    import afterfit

    train = [
        {"pixel_values": image, "label": label}
        for image, label in zip(tensors["train_x"], tensors["train_y"], strict=True)
    ]
    method = afterfit.Ella(
        num_landmarks=NUM_LANDMARKS, num_features=NUM_FEATURES, prior_precision=PRIOR_PRECISION, temperature=1.0
    )
    start = time.process_time()
    posterior = afterfit.fit(network, train, method=method)
    fitted = time.process_time()
    made = posterior.predict({"pixel_values": tensors["test_x"]}).probabilities(link="probit")
    return {"fit_s": fitted - start, "predict_s": time.process_time() - fitted, "probabilities": made}


def theirs(tensors: dict[str, Any], network: Any) -> dict[str, Any]:
    import torch
    from laplace.baselaplace import ELLA  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader, TensorDataset

    train = DataLoader(TensorDataset(tensors["train_x"], tensors["train_y"]), batch_size=BATCH)
    start = time.process_time()
    posterior = ELLA(
        network,
        "classification",
        subsample_size=NUM_LANDMARKS,
        n_eigenvalues=NUM_FEATURES,
        prior_precision=PRIOR_PRECISION,
    )
    posterior.fit(train)
    fitted = time.process_time()
    with torch.no_grad():
        made = torch.cat([posterior(part, link_approx="probit") for part in tensors["test_x"].split(BATCH)])
    return {"fit_s": fitted - start, "predict_s": time.process_time() - fitted, "probabilities": made}


SIDES = {"ours": ours, "theirs": theirs}


def side(name: str, tensors_path: str) -> None:
    """One measurement, printed as JSON. Needs torch and the network's source file only, so that it runs in both."""
    import importlib.util
    import resource

    import torch
    import torch._dynamo  # counting operations imports it, where something else has not

    torch.set_num_threads(1)
    tensors = torch.load(tensors_path, weights_only=True)
    source = Path(__file__).parents[2] / "pipeline/afterfit/network/cifar_resnet.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar_resnet"] = module
    spec.loader.exec_module(module)
    network = module.resnet20()
    network.load_state_dict(tensors.pop("weights"))
    network.eval()
    result = SIDES[name](tensors, network)
    probabilities = result.pop("probabilities").detach().double()
    labels = tensors["test_y"]
    result["nll"] = -probabilities.gather(1, labels[:, None]).log().mean().item()
    result["accuracy"] = (probabilities.argmax(1) == labels).double().mean().item()
    result["confidence_gap"] = probabilities.max(1).values.mean().item() - result["accuracy"]
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(result))


def subset(path: str) -> None:
    """Images, labels and weights of the comparison in one file that both sides can read."""
    import torch

    from afterfit.data.examples import open_examples
    from afterfit.network.loading import load_module
    from afterfit.plan.config import read_config

    config = read_config(str(Path(__file__).parents[2] / "configs/cifar10_resnet/ella_resnet20.yaml"))
    tensors: dict[str, Any] = {"weights": load_module(config.network).state_dict()}
    for name, settings, count in (
        ("train", config.data.train, NUM_TRAIN),
        ("test", config.data.evaluation["test"], NUM_TEST),
    ):
        batch = open_examples(settings.model_copy(update={"take": count})).batch(range(count))
        tensors |= {f"{name}_x": batch.inputs["pixel_values"].float(), f"{name}_y": batch.targets}
    torch.save(tensors, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="a Python that has laplace-torch")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--tensors", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side(given.side, given.tensors)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/subset.pt"
        subset(path)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
        for _ in range(ROUNDS):
            for name, python in (("ours", sys.executable), ("theirs", given.peer)):
                command = [python, __file__, "--side", name, "--tensors", path]
                made = subprocess.run(command, check=True, capture_output=True, text=True)
                measured[name].append(json.loads(made.stdout.splitlines()[-1]))
    figures = figures_of(measured)
    print(json.dumps(figures, indent=1))
    from ella_cifar10 import TARGETS
    from record import open_record

    told = (
        f"{NUM_TRAIN} training and {NUM_TEST} test images, M = {NUM_LANDMARKS}, K = {NUM_FEATURES}, prior precision "
        f"{PRIOR_PRECISION:g}, probit link, one thread, CPU seconds, median of {ROUNDS} rounds in turn"
    )
    open_record("ella_cifar10", "hour", TARGETS).adding(figures, laplace_torch=told)
    return 0


def figures_of(measured: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Ratios pair by pair, and what each side scored."""
    pairs = list(zip(measured["theirs"], measured["ours"], strict=True))
    figures = {
        "time_ratio_laplace_torch_over_afterfit": median(one["fit_s"] / other["fit_s"] for one, other in pairs),
        "predict_ratio_laplace_torch_over_afterfit": median(
            one["predict_s"] / other["predict_s"] for one, other in pairs
        ),
    }
    for name, called in (("ours", "afterfit"), ("theirs", "laplace_torch")):
        for figure in ("fit_s", "predict_s", "nll", "accuracy", "confidence_gap", "peak_gb"):
            figures[f"subset_{called}_{figure}"] = median(one[figure] for one in measured[name])
    return figures


if __name__ == "__main__":
    sys.exit(main())
