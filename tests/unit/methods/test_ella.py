"""ELLA's Gram and basis: by chunks and groups or whole, the same; fewer features are the first of more."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from afterfit.engine import open_engine
from afterfit.methods.ella import Ella
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.resolve import request_from_objects
from afterfit.store.artifact import StoredArtifact
from afterfit.store.directory import open_store
from cases import TILE_WEIGHTS, case_named, dense_training_rows

CASE = case_named("conv_net")
NUM_LANDMARKS = 18


def fit(folder: Path, method: Ella, memory_gb: float = 2.0) -> dict[str, StoredArtifact]:
    """Artifacts by stage, of an in-process run."""
    examples = CASE.examples
    items = [{"input": examples.inputs["input"][i], "label": examples.labels[i]} for i in range(CASE.num_examples)]
    request = request_from_objects(
        CASE.module(),
        {"train": items},
        method,
        CASE.likelihood,
        memory_gb=memory_gb,
        micro_batch=4,
        num_shards=2,
        tile_weights=TILE_WEIGHTS,
    )
    store = open_store(str(folder))
    with open_engine("inprocess", store) as engine:
        ran = execute(posterior_plan(request), request, engine, store)
    return {name: one.artifact for name, one in ran.items()}


def method(num_features: int = 6, num_landmarks: int = NUM_LANDMARKS) -> Ella:
    return Ella(num_landmarks=num_landmarks, num_features=num_features, prior_precision=1.0, temperature=1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, StoredArtifact]:
    return fit(tmp_path_factory.mktemp("whole"), method())


def dense_landmark_rows(landmarks: StoredArtifact) -> Tensor:
    table = landmarks.table("landmarks")
    return dense_training_rows(CASE)[table["example"].to_pylist(), table["output"].to_pylist()]


def projector(artifact: StoredArtifact) -> Tensor:
    basis_PK = torch.cat(list(artifact.tiles("basis").values()))
    return basis_PK @ basis_PK.T


def units(gram: StoredArtifact, memory_gb: float) -> tuple[int, int]:
    """How many chunks of landmarks and groups of tiles the memory makes."""
    from afterfit.methods.ella import NtkGram

    class Outline:
        layout = CASE.network().layout
        state_bytes = 8

        def input(self, _: str) -> StoredArtifact:
            return gram

    outline = Outline()
    outline.memory_gb = memory_gb  # type: ignore[attr-defined]
    made = NtkGram().units(outline)  # type: ignore[arg-type]
    return len({unit.details["left"][0] for unit in made}), len({unit.details["tiles"][0] for unit in made})


def test_the_gram_is_that_of_the_dense_rows_and_the_basis_spans_its_leading_eigenvectors(whole):
    rows_MP = dense_landmark_rows(whole["landmarks"])
    values, vectors = torch.linalg.eigh(rows_MP @ rows_MP.T)
    # float64, sums of some hundred terms
    assert torch.allclose(whole["gram"].tensor("eigenvalues"), values.flip(0), rtol=1e-10, atol=1e-12 * values[-1])
    expected_PK = rows_MP.T @ vectors.flip(1)[:, :6] / values.flip(0)[:6].sqrt()
    assert torch.allclose(projector(whole["basis"]), expected_PK @ expected_PK.T, atol=1e-9)
    basis_PK = torch.cat(list(whole["basis"].tiles("basis").values()))
    assert torch.allclose(basis_PK.T @ basis_PK, torch.eye(6, dtype=torch.float64), atol=1e-10)


def test_pairs_of_chunks_and_groups_of_tiles_give_the_gram_and_basis_of_one_chunk_to_rounding(whole, tmp_path):
    # Two chunks of rows with a tile of 48 weights take 48 x 8 x 10 bytes of explicit rows.
    memory_gb = 48 * 8 * 10 / 0.75e9 * 1.01
    num_chunks, num_groups = units(whole["landmarks"], memory_gb)
    assert num_chunks == 4
    assert num_groups == len(CASE.network().layout.tiles)
    assert units(whole["landmarks"], 2.0) == (1, 1)
    parts = fit(tmp_path, method(), memory_gb)
    assert parts["landmarks"].digest == whole["landmarks"].digest
    scale = float(whole["gram"].tensor("eigenvalues")[0])
    assert torch.allclose(
        parts["gram"].tensor("eigenvalues"),
        whole["gram"].tensor("eigenvalues"),
        rtol=1e-10,
        atol=1e-12 * scale,
    )
    # Signs of eigenvectors are free: the spanned space is compared.
    assert torch.allclose(projector(parts["basis"]), projector(whole["basis"]), atol=1e-9)
    assert parts["posterior"].facts["log_evidence_nats"] == pytest.approx(
        whole["posterior"].facts["log_evidence_nats"], rel=1e-10
    )


def test_groups_alone_change_no_bit(whole, tmp_path):
    # All landmark rows of one tile and its columns fit twice over, those of two tiles do not.
    memory_gb = 48 * 8 * (NUM_LANDMARKS + 2 * 6) / 0.75e9 * 1.01
    num_chunks, num_groups = units(whole["landmarks"], memory_gb)
    assert num_chunks == 1
    assert num_groups > 2
    parts = fit(tmp_path, method(), memory_gb)
    for stage in ("gram", "basis"):
        assert parts[stage].digest == whole[stage].digest


def test_fewer_features_are_the_first_of_more(whole, tmp_path):
    few = fit(tmp_path, method(num_features=4))
    for name, columns_PK in few["basis"].tiles("basis").items():
        # Products with fewer columns may round otherwise.
        assert torch.allclose(columns_PK, whole["basis"].tiles("basis")[name][:, :4], atol=1e-13)
    inside = whole["curvature"].tensor("curvature")[:, :4, :4]
    assert torch.allclose(few["curvature"].tensor("curvature"), inside, rtol=1e-10, atol=1e-12 * float(inside.max()))


def test_features_beyond_the_rank_are_left_out_with_a_note(tmp_path):
    made = fit(tmp_path, method(num_features=30, num_landmarks=30))
    rank = made["gram"].facts["rank"]
    assert made["basis"].facts["num_features"] == rank <= 30
    assert next(iter(made["basis"].tiles("basis").values())).shape[1] == rank
    assert rank == 30 or f"lowered from 30 to {rank}" in made["basis"].facts["notes"][0]
