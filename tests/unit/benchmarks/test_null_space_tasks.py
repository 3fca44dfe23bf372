"""The tasks of the null-space benchmark and their configurations."""

from operator import attrgetter

import pytest

from null_space_tasks import ENCODER, TASKS, config_of


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setenv(ENCODER, "somewhere/model")


@pytest.mark.parametrize("task", TASKS, ids=attrgetter("name"))
@pytest.mark.parametrize("budget", ["hour", "full"])
def test_a_configuration_has_the_roles_that_the_benchmark_asks_for(task, budget):
    data = config_of(task, budget).data
    assert list(data.evaluation) == ["test"]
    assert list(data.out_of_distribution) == [task.outside]
    assert data.validation is not None


@pytest.mark.parametrize("task", TASKS, ids=attrgetter("name"))
def test_an_hour_takes_as_many_examples_as_the_task_says(task):
    data = config_of(task, "hour").data
    roles = {"train": data.train, "validation": data.validation}
    roles |= {f"evaluation.{name}": part for name, part in data.evaluation.items()}
    roles |= {f"out_of_distribution.{name}": part for name, part in data.out_of_distribution.items()}
    assert {place: roles[place].take for place in task.take} == dict(task.take)


@pytest.mark.parametrize("task", [task for task in TASKS if task.is_text], ids=attrgetter("name"))
@pytest.mark.parametrize("budget", ["hour", "full"])
def test_every_text_is_read_with_the_encoder_that_is_installed(task, budget):
    config = config_of(task, budget)
    data = config.data
    sets = [data.train, data.validation, *data.evaluation.values(), *data.out_of_distribution.values()]
    readers = [part.columns.inputs["input_ids"] for part in sets]
    assert config.network.path == "somewhere/model"
    assert [reader.tokenizer for reader in readers] == ["somewhere/model"] * 4
    assert {reader.pad_to for reader in readers} == {"longest"}


def test_a_text_task_is_left_out_without_its_encoder(monkeypatch):
    monkeypatch.delenv(ENCODER)
    assert [task.name for task in TASKS if not task.is_here] == ["sst2"]
