"""What a store remembers of a run is enough to count its costs again."""

from pathlib import Path

import pytest

from afterfit.errors import ArtifactError
from afterfit.plan.config import read_config
from afterfit.plan.cost import costs
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.record import RunRecord, read_record
from afterfit.plan.run import Prepared, prepare
from tiny_project import write_project


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> Prepared:
    monkeypatch.chdir(tmp_path)
    write_project(Path(tmp_path))
    return prepare(read_config("tiny.yaml", ["memory_gb=0.0002"]))


def test_costs_and_the_micro_batch_of_another_budget_are_those_of_the_opened_network(prepared):
    RunRecord.of(prepared.config, prepared.request, prepared.plan).write(prepared.store)
    again = read_record(prepared.store).request()
    assert again.coverage == prepared.request.coverage
    assert again.coverage is not None
    assert costs(posterior_plan(again), again) == prepared.costs
    for memory_gb in (1e-4, 1e-5):
        assert again.with_memory(memory_gb).micro_batch == prepared.request.with_memory(memory_gb).micro_batch


def test_a_record_of_another_format_is_refused_with_the_remedy(prepared):
    RunRecord.of(prepared.config, prepared.request, prepared.plan).write(prepared.store)
    prepared.store.put_record("run.json", prepared.store.get_record("run.json") | {"format": 1})
    with pytest.raises(ArtifactError, match="run `afterfit run` with the same configuration again, what is finished"):
        read_record(prepared.store)
