"""What follows stored draws: the graph of stages, and their numbers against dense computations."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from afterfit.engine import open_engine
from afterfit.errors import ConfigError
from afterfit.methods.ella import Ella
from afterfit.network.functional import Network
from afterfit.plan.cost import costs
from afterfit.plan.execute import Ran, execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.predictions import matrix
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import request_from_objects
from afterfit.predict.scores import auroc
from afterfit.store.directory import open_store
from cases import TILE_WEIGHTS, NetworkCase, assert_near, case_named, dense_jacobian, dense_outputs, flat
from toy_draws import SCALE_BY_VALIDATION, ToyDraws, noise

SCALE = 0.1
CASES = [case_named(name) for name in ("mlp", "conv_net", "bert", "regression", "bernoulli")]


def requested(case: NetworkCase, method: Any = None, **changed: Any) -> FitRequest:
    """Evaluated on the first nine training examples, in two shards; the others are out of distribution."""
    items = case.items
    request = request_from_objects(
        case.module(),
        {"train": items, "validation": items[:5], "test": items[:9], "far": items[5:]},
        method or ToyDraws(),
        case.likelihood,
        in_distribution=("test",),
        out_of_distribution=("far",),
        output=case.output,
        num_shards=2,
        micro_batch=4,
        tile_weights=TILE_WEIGHTS,
    )
    return replace(request, **changed)


def ran(request: FitRequest, folder: Any) -> Mapping[str, Ran]:
    store = open_store(str(folder))
    with open_engine("inprocess", store) as engine:
        return execute(posterior_plan(request), request, engine, store)


def dense_draws(network: Network, num: int, seed: int = 0) -> torch.Tensor:
    """(P, S)."""
    tiles = network.layout.tiles
    columns = [torch.cat([noise(seed, tile.name, tile.size, number) for tile in tiles]) for number in range(num)]
    return torch.stack(columns, dim=1)


def dense_moved(case: NetworkCase, by: str, scale: float, num: int) -> torch.Tensor:
    """Displacements of the first nine examples' outputs, (9, C, S)."""
    network, batch = case.network(), case.examples.batch(range(9))
    draws_PS = dense_draws(network, num)
    if by == "linearised":
        return scale * dense_jacobian(network, batch) @ draws_PS
    moved = []
    for draw_P in draws_PS.T:
        weights, start = {}, 0
        for block in network.layout.blocks:
            weights[block.name] = network.weights[block.name] + scale * draw_P[start : start + block.size].reshape(
                block.shape
            )
            start += block.size
        with torch.no_grad():
            moved.append(network(batch.inputs, weights) - network(batch.inputs))
    return torch.stack(moved, dim=2)


def test_the_dense_draws_are_in_the_order_of_the_layout():
    network = case_named("mlp").network()
    draw_P = dense_draws(network, 1)[:, 0]
    cut = dict(zip([tile.name for tile in network.layout], draw_P.split([t.size for t in network.layout]), strict=True))
    assert torch.equal(flat(network.layout, network.layout.assemble(cut)), draw_P)


@pytest.mark.parametrize("by", ["linearised", "network"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_predictions_are_those_of_every_draw(case, by, tmp_path):
    made = ran(requested(case, by=by), tmp_path)
    table = made["predictions-test"].artifact.table("predictions")
    mean_NC = dense_outputs(case.network(), case.examples.batch(range(9)))
    moved_NCS = dense_moved(case, by, SCALE, 6)
    assert table["index"].to_pylist() == list(range(9))
    rtol = max(case.rtol, 1e-9)  # two ways of making the Jacobian, then squares of six draws
    assert_near(matrix(table["mean"]), mean_NC, rtol)
    assert_near(matrix(table["variance"]), moved_NCS.square().mean(dim=2), rtol)
    if case.likelihood.name == "gaussian":
        assert "disagreement" not in table.column_names
        return
    logits_SNC = (mean_NC[..., None] + moved_NCS).movedim(2, 0)
    each_SNC = logits_SNC.softmax(dim=2) if case.likelihood.name == "categorical" else logits_SNC.sigmoid()
    assert_near(matrix(table["probabilities"]), each_SNC.mean(dim=0), rtol)
    assert_near(matrix(table["disagreement"]), each_SNC.var(dim=0, unbiased=False).sum(dim=1), rtol)


def test_linearised_and_plain_draws_agree_to_first_order_only(tmp_path):
    case = case_named("mlp")
    found = {}
    for scale in (1e-4, 0.1):
        for by in ("linearised", "network"):
            made = ran(requested(case, ToyDraws(scale=scale), by=by), tmp_path)
            found[scale, by] = matrix(made["predictions-test"].artifact.table("predictions")["variance"])
    # Relative difference is of the order of the scale times |d| / |theta|.
    assert torch.allclose(found[1e-4, "linearised"], found[1e-4, "network"], rtol=1e-2)
    assert not torch.allclose(found[0.1, "linearised"], found[0.1, "network"], rtol=1e-2)


def test_the_posterior_collects_facts_and_scores_have_the_variance_of_draws_for_the_posterior_alone(tmp_path):
    made = ran(requested(case_named("mlp")), tmp_path)
    facts = dict(made["posterior"].artifact.facts)
    (certified,) = facts.pop("notes")
    assert certified.startswith(
        "No protected row moves by more than 4.0e-08 of its length and the draw's, for any of 6 draws"
    )
    assert facts == {
        "scale": SCALE,
        "rule": str(SCALE),
        "num_draws": 6,
        "solver": "toy",
        "rank": 5,
        "rank_is_bound": False,
        "cut_off": 1e-12,
        "residual": 4e-8,  # of the second chunk, the larger one
        "isotropic": 2e-2,
        "largest_loss_change": 0.05,
        "relative_length": 0.3,
        "likelihood": "categorical",
    }
    rows = made["scores"].artifact.table("scores").to_pylist()
    of = {(row["predictor"], row["dataset"], row["metric"]): row["value"] for row in rows}
    assert ("map", "far", "ood_auroc_variance") not in of
    near, far = (
        matrix(made[f"predictions-{role}"].artifact.table("predictions")["disagreement"]) for role in ("test", "far")
    )
    assert of["posterior", "far", "ood_auroc_variance"] == auroc(far, near)
    table = made["predictions-test"].artifact.table("predictions")
    labels = case_named("mlp").examples.targets()[:9].tolist()
    answered = [row[label] for row, label in zip(table["probabilities"].to_pylist(), labels, strict=True)]
    # NLL is minus the logarithm of the mean, never the mean of logarithms.
    assert of["posterior", "test", "nll"] == pytest.approx(-np.log(answered).mean(), rel=1e-9)


def test_a_fitted_noise_variance_reaches_the_posterior_and_its_predictions(tmp_path):
    case = case_named("regression")
    made = ran(requested(case, likelihood=replace(case.likelihood, noise_variance=None)), tmp_path)
    variance = made["noise"].artifact.facts["noise_variance"]
    assert made["posterior"].artifact.facts["noise_variance"] == variance
    table = made["predictions-test"].artifact.table("predictions")
    assert float(matrix(table["noise"]).max()) == pytest.approx(variance)


def test_more_draws_leave_every_stage_but_the_last_ones_as_it_was(tmp_path):
    case = case_named("mlp")
    ran(requested(case), tmp_path)
    again = ran(requested(case, ToyDraws(num_draws=9)), tmp_path)
    new = {name for name, one in again.items() if not one.was_done}
    chunk = {"draws-00006", "certificate-00006", "features-test-00006", "features-far-00006"}
    assert new == chunk | {"posterior", "predictions-test", "predictions-far", "scores"}
    assert again["posterior"].artifact.facts["num_draws"] == 9
    variance = matrix(again["predictions-test"].artifact.table("predictions")["variance"])
    assert_near(variance, dense_moved(case, "linearised", SCALE, 9).square().mean(dim=2), 1e-9)


def test_a_scale_chosen_by_validation_reads_the_first_chunk_linearised_there(tmp_path):
    case = case_named("mlp")
    request = requested(case, ToyDraws(scale="validation"), by="network")
    plan = {stage.name: stage for stage in posterior_plan(request)}
    assert type(plan["features-validation-00000"].recipe).__name__ == "DrawFeatures"
    assert "features-validation-00003" not in plan
    assert plan["features-test-00000"].inputs["scale"] is plan["scale"]
    made = ran(request, tmp_path)
    assert made["posterior"].artifact.facts["scale"] == SCALE_BY_VALIDATION
    variance = matrix(made["predictions-test"].artifact.table("predictions")["variance"])
    assert_near(variance, dense_moved(case, "network", SCALE_BY_VALIDATION, 6).square().mean(dim=2), 1e-9)


def test_another_scale_makes_no_features_again_unless_the_plain_network_is_evaluated():
    case = case_named("mlp")
    for by, changes in (("linearised", False), ("network", True)):
        keys = [
            {stage.name: stage.key for stage in posterior_plan(requested(case, ToyDraws(scale=scale), by=by))}
            for scale in (0.1, 0.2)
        ]
        changed = {name for name in keys[0] if keys[0][name] != keys[1][name]}
        assert {"scale", "posterior", "predictions-test", "scores"} <= changed
        assert ("features-test-00000" in changed) is changes


def test_what_draws_cannot_do_is_refused_in_one_sentence():
    case = case_named("mlp")
    request = requested(case)
    later = replace(request, extensions=("validation",))
    with pytest.raises(
        ConfigError, match=r"toy_draws takes no data that come later: what it leaves belongs .* to `train`"
    ):
        posterior_plan(later)
    data = {role: source for role, source in request.data.items() if role != "validation"}
    with pytest.raises(ConfigError, match="scale by validation needs validation data"):
        posterior_plan(replace(request, method=ToyDraws(scale="validation"), data=data))
    with pytest.raises(ConfigError, match=r"evaluated at stored draws only.*prediction\.by: linearised"):
        posterior_plan(replace(request, method=Ella(num_landmarks=8), by="network"))


@pytest.mark.parametrize("by", ["linearised", "network"])
def test_costs_are_those_of_a_run(by, tmp_path):
    request = requested(case_named("mlp"), ToyDraws(num_draws=8), by=by)
    counted = costs(posterior_plan(request), request)
    made = ran(request, tmp_path)
    for name in ("features-test-00000", "features-test-00006", "predictions-test", "posterior"):
        cost = counted[name]
        assert cost is not None
        files = 4096 * cost.num_units  # headers and padding
        assert cost.stored_bytes <= made[name].artifact.num_bytes <= cost.stored_bytes + files, name
    first, last = counted["features-test-00000"], counted["features-test-00006"]
    assert first is not None
    assert last is not None
    assert first.stored_bytes - last.stored_bytes == 9 * 4 * 1 * 8  # a chunk of three draws and one of two
    assert first.flops > last.flops > 0
