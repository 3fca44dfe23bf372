"""Nothing of a split's test rows reaches what it learns from, or what is chosen for it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from afterfit.errors import DataError
from paper_splits import Splits, read_splits
from regression_scores import joint, log_densities, pointwise, rmse
from uci_table import DATA_SETS
from uci_units import folds


def _splits(seed: int = 1) -> Splits:
    torch.manual_seed(seed)
    order = torch.randperm(23)
    features_Nd = torch.randn(23, 3).double()
    features_Nd[:, 1] = 4.0  # says nothing
    return Splits(features_Nd, torch.randn(23).double(), (order[:19], order[4:]), (order[19:], order[:4]))


def test_training_inputs_and_targets_do_not_depend_on_test_rows() -> None:
    splits = _splits()
    plain = splits.standardised()
    for split, rows in enumerate(splits.test):
        features_Nd, targets_N = splits.features_Nd.clone(), splits.targets_N.clone()
        features_Nd[rows] += 100
        targets_N[rows] -= 50

        changed = Splits(features_Nd, targets_N, splits.train, splits.test).standardised()

        train = splits.train[split]
        assert torch.equal(changed.inputs_DNI[split, train], plain.inputs_DNI[split, train])
        assert torch.equal(changed.targets_DN[split, train], plain.targets_DN[split, train])
        assert torch.equal(changed.scale_D[split], plain.scale_D[split])


def test_training_rows_are_standard_and_a_constant_feature_is_zero() -> None:
    splits = _splits()
    standard = splits.standardised()
    train = splits.train[0]

    inputs_nI, targets_n = standard.inputs_DNI[0, train], standard.targets_DN[0, train]

    torch.testing.assert_close(inputs_nI.mean(dim=0), torch.tensor([0.0, 0.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(inputs_nI.std(dim=0), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(targets_n.std(), torch.tensor(1.0))


def test_folds_are_parts_of_the_training_rows_alone() -> None:
    splits = _splits()

    made = list(folds(DATA_SETS["boston"], splits))

    assert [(fold.split, fold.number) for fold in made] == [(split, part) for split in (0, 1) for part in range(5)]
    for fold in made:
        assert sorted([*fold.kept.tolist(), *fold.held_out.tolist()]) == sorted(splits.train[fold.split].tolist())
    held_out = torch.cat([fold.held_out for fold in made if fold.split == 0])
    assert sorted(held_out.tolist()) == sorted(splits.train[0].tolist())


def test_files_with_splits_and_files_with_two_roles_are_read(tmp_path: Path) -> None:
    table = pa.table({"x0": [1, 2, 3, 4], "x1": [0.5, 0.25, 0.5, 0.25], "y": [0, 1, 1, 0]})
    cut = {
        "split": [0, 0, 0, 0, 1, 1, 1, 1],
        "row": [0, 1, 2, 3, 3, 2, 1, 0],
        "role": ["train", "train", "test", "test"] * 2,
    }
    pq.write_table(table, tmp_path / "data.parquet")
    pq.write_table(pa.table(cut), tmp_path / "splits.parquet")
    official = tmp_path / "official"
    official.mkdir()
    pq.write_table(table.slice(0, 3), official / "train.parquet")
    pq.write_table(table.slice(3), official / "test.parquet")

    several, one = read_splits(str(tmp_path)), read_splits(str(official))

    assert [rows.tolist() for rows in several.train] == [[0, 1], [3, 2]]
    assert [rows.tolist() for rows in several.test] == [[2, 3], [1, 0]]
    assert ([rows.tolist() for rows in one.train], [rows.tolist() for rows in one.test]) == ([[0, 1, 2]], [[3]])
    assert torch.equal(several.with_ones()[0], one.with_ones()[0])
    assert one.with_ones()[0, 1].tolist() == [2, 0.25, 1]


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no_such_set.*AFTERFIT_DATA"):
        read_splits("no_such_set")


def test_scores_are_those_of_torch_and_one_draw_makes_both_likelihoods_equal() -> None:
    torch.manual_seed(1)
    outputs_SN, targets_N = torch.randn(5, 7), torch.randn(7)
    densities_SN = torch.distributions.Normal(outputs_SN.double(), 4.0**-0.5).log_prob(targets_N.double())

    made_SN = log_densities(outputs_SN, targets_N, 4.0)

    torch.testing.assert_close(made_SN, densities_SN)
    torch.testing.assert_close(pointwise(made_SN), densities_SN.exp().mean(dim=0).log().mean())
    torch.testing.assert_close(joint(made_SN), densities_SN.sum(dim=1).exp().mean().log() / 7)
    torch.testing.assert_close(pointwise(made_SN[:1]), joint(made_SN[:1]))
    assert rmse(outputs_SN, outputs_SN.mean(dim=0)) == pytest.approx(0, abs=1e-6)
