"""Places, adoption, records and removal."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from afterfit.algebra import Result
from afterfit.errors import ArtifactError, ConfigError, StoreError
from afterfit.store.directory import open_store


def part(number: int) -> Result:
    return Result(
        tensors={"v": [(f"{number}-{index}", torch.full((2, 3), 10.0 * number + index)) for index in range(2)]},
        tables={"t": pa.table({"n": [number]})},
        facts={"number": number, "only_of_part": number},
    )


def adopted(store):
    for number in (2, 0, 1):
        store.write(f"s/k/unit/{number}", part(number))
    return store.adopt("s/k", [f"s/k/unit/{number}" for number in range(3)], facts={"whole": True, "number": 7})


def test_an_adopted_artifact_is_the_union_of_its_parts_in_order(store):
    artifact = adopted(store)
    names = ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert list(artifact.tiles("v")) == names
    assert list(artifact.state()) == [f"v/{name}" for name in names]
    assert artifact.tensor("v")[::2, 0].tolist() == [0.0, 1.0, 10.0, 11.0, 20.0, 21.0]
    assert artifact.table("t")["n"].to_pylist() == [0, 1, 2]
    assert artifact.facts == {
        "number": 7,
        "whole": True,
        "only_of_part": 2,
    }  # its own stand before its parts'
    assert [each.place for each in artifact.parts] == ["s/k/unit/0", "s/k/unit/1", "s/k/unit/2"]
    assert artifact.num_bytes == sum(each.num_bytes for each in artifact.parts) > 0
    assert len(pickle.dumps(artifact)) < 1000
    store.verify("s/k")


def test_adopting_copies_nothing_and_may_be_nested(store):
    adopted(store)
    before = sorted(Path(store.uri).rglob("*.arrow"))
    store.write("other", Result(tensors={"w": [("a", torch.ones(1))]}))
    nested = store.adopt("all", ["s/k", "other"])
    assert len(list(Path(store.uri).rglob("*.arrow"))) == len(before) + 1
    assert nested.families == ("v", "w")
    assert len(nested.tiles("v")) == 6
    store.verify("all")


def test_the_digest_of_an_adopted_artifact_follows_its_parts_their_order_and_its_facts(store):
    whole = adopted(store)
    places = [f"s/k/unit/{number}" for number in range(3)]
    same = store.adopt("b", places, facts={"whole": True, "number": 7}, about={"x": 1})
    others = [
        store.adopt("c", places[::-1], facts={"whole": True, "number": 7}),
        store.adopt("d", places[:2], facts={"whole": True, "number": 7}),
        store.adopt("e", places),
    ]
    assert whole.digest == same.digest
    assert len({whole.digest, *(other.digest for other in others)}) == 4


def test_adopting_what_is_not_finished_or_overlaps_is_refused(store):
    adopted(store)
    with pytest.raises(ArtifactError, match="nowhere is not finished"):
        store.adopt("x", ["s/k/unit/0", "nowhere"])
    with pytest.raises(ConfigError, match="both have a tile v/0-0"):
        store.adopt("x", ["s/k/unit/0", "s/k"])
    assert store.find("x") is None


@pytest.mark.parametrize(("again", "what"), [(False, "is missing"), (True, "has changed")])
def test_a_part_that_went_away_or_changed_is_named_with_the_remedy(store, again, what):
    adopted(store)
    store.drop("s/k/unit/1")
    if again:
        store.write("s/k/unit/1", part(7))
    with pytest.raises(ArtifactError, match=rf"s/k/unit/1, .*, {what}: delete the file s/k/manifest.json"):
        store.read("s/k").tensor("v")
    with pytest.raises(ArtifactError, match=what):
        store.verify("s/k")


def test_places_are_listed_sorted_and_below_the_prefix_only(store):
    adopted(store)
    store.write("s/kk", Result())
    assert store.places("s/k") == ["s/k/unit/0", "s/k/unit/1", "s/k/unit/2"]
    assert store.places() == ["s/k", "s/k/unit/0", "s/k/unit/1", "s/k/unit/2", "s/kk"]
    assert store.places("nowhere") == []


def test_dropping_removes_the_place_and_all_below_it_and_nothing_else(store):
    adopted(store)
    store.write("s/kk", part(5))
    store.drop("s/k")
    store.drop("s/k")  # again does nothing
    assert store.places() == ["s/kk"]
    assert not (Path(store.uri) / "s/k").exists()
    store.verify("s/kk")


def test_dropping_takes_every_marker_before_any_data(store, monkeypatch):
    adopted(store)

    def refuse(path):
        raise PermissionError(13, "denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(StoreError, match="permission is denied"):
        store.drop("s/k")
    assert store.places() == []
    assert list(Path(store.uri).rglob("*.arrow"))


def test_a_second_write_of_a_finished_place_writes_nothing(store):
    first = store.write("a", part(1))
    files = {path: path.stat().st_mtime_ns for path in Path(store.uri).rglob("*")}

    def never():
        raise AssertionError("a finished place was written again")
        yield

    assert store.write("a", Result(tensors={"v": never()})).digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in Path(store.uri).rglob("*")} == files


def test_records_are_overwritten_and_are_no_artifacts(store):
    adopted(store)
    assert store.get_record("run.json") is None
    store.put_record("run.json", {"a": 1})
    store.put_record("run.json", {"a": [2]})
    store.put_record("events/gram/1.json", 3)
    assert store.get_record("run.json") == {"a": [2]}
    assert store.records() == ["events/gram/1.json", "run.json"]
    assert store.records("events") == ["events/gram/1.json"]
    assert "run.json" not in store.places()
    (Path(store.uri) / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run.json .* is damaged: delete it"):
        store.get_record("run.json")


@pytest.mark.parametrize("form", ["plain", "uri", "relative"])
def test_a_local_store_opens_again_from_any_working_directory(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    uri = {"plain": str(tmp_path / "a b%20?#"), "uri": (tmp_path / "a b").as_uri(), "relative": "x/y"}[form]
    store = open_store(uri)
    store.write("a", part(1))
    monkeypatch.chdir("/")
    assert open_store(store.uri).read("a").facts["number"] == 1
    assert str(tmp_path) in store.uri


@pytest.mark.parametrize(
    "uri",
    ["ftp://host/x", "hf://datasets/x", "s3:///x", "s3://me:secret@b/x", "s3://b/x?speed=1", "file://host/x"],
)
def test_a_store_that_cannot_be_opened_says_what_can_without_telling_secrets(uri):
    with pytest.raises(StoreError, match="No store can be opened") as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


def test_a_cloud_store_without_its_client_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"pip install 'afterfit\[gs\]'"):
        open_store("gs://bucket/x?endpoint_override=http://127.0.0.1:9")


def test_how_its_content_is_divided_among_parts_does_not_show_in_the_digest_of_the_whole(store):
    tiles = [(str(number), torch.full((2,), float(number))) for number in range(4)]
    for name, cuts in {"halves": (0, 2, 4), "whole": (0, 4), "others": (1, 4)}.items():
        places = [f"{name}/unit/{start}" for start in cuts[:-1]]
        for place, start, stop in zip(places, cuts[:-1], cuts[1:], strict=True):
            store.write(place, Result(tensors={"v": tiles[start:stop]}, facts={"rank": 3}))
        store.adopt(name, places)
    assert store.read("halves").digest == store.read("whole").digest
    assert store.read("others").digest != store.read("whole").digest
