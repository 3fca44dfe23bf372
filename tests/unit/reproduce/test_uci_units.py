"""The regression table on a toy data set: both stages, stopped anywhere, without a look at test rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import slang_uci
import uci_units
from afterfit.engine import Event, Kind, open_engine
from afterfit.store.directory import Store, open_store
from uci_table import DATA_SETS, Chosen


class StopError(Exception):
    """Instead of a kill."""


def _write(folder: Path, moved: float = 0.0) -> None:
    """40 rows and two splits of 30 and 10; `moved` is added to the targets of the first split's test rows."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(40, 2))
    targets = features[:, 0] - features[:, 1] ** 2 + 0.1 * generator.normal(size=40)
    orders = [generator.permutation(40) for _ in range(2)]
    targets[orders[0][30:]] += moved
    folder.mkdir()
    pq.write_table(pa.table({"x0": features[:, 0], "x1": features[:, 1], "y": targets}), folder / "data.parquet")
    listed = {
        "split": np.repeat([0, 1], 40),
        "row": np.concatenate(orders),
        "role": (["train"] * 30 + ["test"] * 10) * 2,
    }
    pq.write_table(pa.table(listed), folder / "splits.parquet")


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small data set, and few epochs."""
    _write(tmp_path / "toy")
    chosen = Chosen(folds=3, tried=2, epochs=3, noise_precisions=(2.0, 8.0), prior_precisions=(1.0,))
    data = replace(DATA_SETS["boston"], name="toy", folder=str(tmp_path / "toy"), chosen=chosen)
    monkeypatch.setitem(DATA_SETS, "toy", data)  # type: ignore[arg-type]
    monkeypatch.setattr(uci_units, "EPOCHS", 4)


def _run(store: Store, stop_at: str = "") -> dict[str, str]:
    def tell(event: Event) -> None:
        if event.kind == Kind.ADVANCED and f"{event.place[:3]} {event.position}" == stop_at:
            raise StopError

    with open_engine("inprocess", store, checkpoint_s=0.0, events=tell) as engine:
        slang_uci.run(engine, store, ["toy"])
    return {place: store.read(place).digest for place in store.places() if place.count("/") == 1}


@pytest.mark.parametrize("moment", ["cho 2", "fit 1", "fit 3"])
def test_a_table_stopped_anywhere_goes_on_to_the_same_bits(tmp_path: Path, moment: str) -> None:
    whole = _run(open_store(str(tmp_path / "whole")))
    store = open_store(str(tmp_path / "stopped"))

    with pytest.raises(StopError):
        _run(store, moment)

    assert _run(store) == whole
    assert len(whole) == 2


def test_scores_have_all_that_figures_are_made_of(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with open_engine("inprocess", store) as engine:
        scores = slang_uci.run(engine, store, ["toy"])

    figures = dict(slang_uci.figures("toy", scores))

    assert scores["split"].to_pylist() == [0, 1]
    assert {f"toy_{name}" for name in ("rmse", "rmse_se", "ll", "ll_se", "ll_joint")} <= set(figures)
    assert figures["toy_rmse"] == pytest.approx(np.mean(scores["rmse"].to_pylist()))
    expected = (figures["toy_rmse"] - 3.21) / np.hypot(figures["toy_rmse_se"], 0.19)
    assert figures["toy_rmse_behind"] == pytest.approx(expected)


def test_what_is_chosen_for_a_split_does_not_depend_on_its_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "moved", moved=30.0)
    chosen = []
    for folder in ("toy", "moved"):
        monkeypatch.setitem(DATA_SETS, "toy", replace(DATA_SETS["toy"], folder=str(tmp_path / folder)))  # type: ignore[arg-type]
        store = open_store(str(tmp_path / f"store of {folder}"))
        with open_engine("inprocess", store) as engine:
            slang_uci.run(engine, store, ["toy"])
        place = next(place for place in store.places("choose") if place.count("/") == 1)
        chosen.append(store.read(place).table("choices").to_pylist())

    assert chosen[0][0] == chosen[1][0]
    assert chosen[0][1] != chosen[1][1]  # some of these rows are training rows of the other split
