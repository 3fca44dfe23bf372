"""The same laws behind the S3 protocol, against a server on loopback."""

import pickle
import threading

import pytest
import torch

from afterfit.algebra import Result
from afterfit.errors import ArtifactError, StoreError
from afterfit.store.directory import open_store


@pytest.fixture
def remote(s3, request):
    return open_store(f"s3://fits/runs/{request.node.name}")


def keys(remote) -> list[str]:
    return remote._files.below("")


def test_an_artifact_is_the_same_on_disk_and_in_an_object_store(store, remote, result):
    near, far = store.write("g/1", result), remote.write("g/1", result)
    assert near.digest == far.digest
    read = pickle.loads(pickle.dumps(remote)).read("g/1")
    assert torch.equal(read.tensor("image"), near.tensor("image"))
    assert read.table("scores").equals(result.tables["scores"])
    assert read.facts == near.facts
    other = pickle.loads(pickle.dumps(read))
    assert torch.equal(other.tiles("image")["00001"], near.tiles("image")["00001"])
    remote.verify("g/1")
    assert remote.find("g/2") is None


def test_adoption_listing_records_and_removal_work_the_same(remote, result):
    for number in range(2):
        tiles = [(f"{number}", torch.full((2, 2), float(number)))]
        remote.write(f"s/k/unit/{number}", Result(tensors={"v": tiles}))
    whole = remote.adopt("s/k", ["s/k/unit/0", "s/k/unit/1"])
    assert whole.tensor("v")[:, 0].tolist() == [0, 0, 1, 1]
    remote.write("s/kk", result)
    assert remote.places("s/k") == ["s/k/unit/0", "s/k/unit/1"]
    remote.put_record("events/x.json", {"a": 1})
    remote.put_record("events/x.json", {"a": 2})
    assert remote.get_record("events/x.json") == {"a": 2}
    assert remote.get_record("events/y.json") is None
    assert remote.records() == ["events/x.json"]
    remote.drop("s/k")
    remote.drop("s/k")
    assert remote.places() == ["s/kk"]
    assert remote.find("s/k") is None
    remote.verify("s/kk")


def test_of_two_writers_one_wins_and_the_other_clears_up(remote):
    barrier = threading.Barrier(3)
    found = []

    def write(number):
        def tiles():
            barrier.wait(timeout=60)
            yield "t", torch.arange(5.0)

        own = Result(tensors={"x": tiles()})
        found.append(open_store(remote.uri).write("a", own, about={"writer": number}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({artifact.about["writer"] for artifact in found}) == 1
    assert len({artifact.digest for artifact in found}) == 1
    assert len(keys(remote)) == 2  # the winner's data and its marker
    remote.verify("a")


def test_work_that_fails_half_way_leaves_no_truncated_object(remote):
    def tiles():
        yield "0", torch.ones(3)
        raise RuntimeError("the network broke")

    with pytest.raises(RuntimeError, match="the network broke"):
        remote.write("a", Result(tensors={"x": tiles()}))
    assert remote.find("a") is None
    assert keys(remote) == []


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_damage_is_named(remote, result, harm):
    artifact = remote.write("a", result)
    (path,) = [path for path in keys(remote) if path.endswith(".arrow")]
    data = bytearray(remote._files.read(path))
    data[artifact._manifest.families["image"][2].offset] ^= 1
    if harm == "delete":
        remote._files.delete(path)
    else:
        remote._files.replace(path, bytes(data if harm == "flip" else data[: len(data) // 2]))
    with pytest.raises(ArtifactError, match=path.rpartition("/")[2]):
        artifact.tensor("image")
    with pytest.raises(ArtifactError, match=path.rpartition("/")[2]):
        remote.verify("a")


def test_an_endpoint_in_the_uri_travels_with_the_store(s3, s3_address, monkeypatch, result):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store = open_store(f"s3://fits/runs/endpoint?endpoint_override={s3_address}")
    digest = store.write("a", result).digest
    assert pickle.loads(pickle.dumps(store)).read("a").digest == digest


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(StoreError, match="make the bucket elsewhere first"):
        open_store("s3://elsewhere/runs")


def test_a_service_that_does_not_answer_is_one_sentence(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"cannot be opened: .*credentials, then run the same command") as caught:
        open_store("s3://fits/runs")
    assert "\n" not in str(caught.value)
