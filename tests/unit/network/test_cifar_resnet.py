"""The residual networks with the weights of others."""

import io
import os
from pathlib import Path

import pytest
import torch

from afterfit.network.loading import load_module, load_network
from afterfit.network.settings import NetworkSettings

NUM_IMAGES = 1000
NUM_CORRECT = 915  # of the first 1000 test images; all 10 000 give accuracy .9173, NLL .3727 and ECE .0532


def shared(variable: str, folder: str, name: str) -> Path:
    roots = [Path(root) for root in (os.environ.get(variable), f"../shared/{folder}") if root]
    for root in roots:
        if (root / name).is_file():
            return root / name
    pytest.skip(f"{name} is not below ${variable} or ../shared/{folder}")


@pytest.mark.parametrize(("depth", "num_weights"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_the_networks_have_the_depth_and_the_weights_of_the_paper(depth, num_weights):
    module = load_module(NetworkSettings(factory=f"afterfit.network.cifar_resnet:resnet{depth}"))
    named = dict(module.named_parameters())
    assert sum(weight.numel() for weight in named.values()) == num_weights
    assert sum("conv" in name or name == "linear.weight" for name in named) == depth
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pretrained_weights_classify_real_images_as_well_as_published():
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(shared("AFTERFIT_DATA", "data", "cifar10/test.parquet")).slice(0, NUM_IMAGES)
    weights = shared("AFTERFIT_MODELS", "models", "cifar10-resnet/resnet20.safetensors")
    pictures = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in table["image"].to_pylist()]
    images_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images_BCHW = (images_BCHW - mean[:, None, None]) / std[:, None, None]
    network = load_network(NetworkSettings(factory="afterfit.network.cifar_resnet:resnet20", weights=str(weights)))
    with torch.no_grad():
        logits = torch.cat([network({"pixel_values": part}) for part in images_BCHW.split(250)])
    assert int((logits.argmax(dim=1) == torch.tensor(table["label"].to_pylist())).sum()) == NUM_CORRECT
