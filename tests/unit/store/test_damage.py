"""Damage is seen, named, and comes with a remedy."""

import json
import random
from pathlib import Path

import pytest
import torch

from afterfit.algebra import Result
from afterfit.errors import ArtifactError


def read_all(store, place):
    artifact = store.read(place)
    tiles = {family: dict(artifact.tiles(family)) for family in artifact.families}
    return artifact.facts, tiles, {name: artifact.table(name) for name in artifact.tables}


def same(left, right) -> bool:
    return (
        left[0] == right[0]
        and left[2] == right[2]
        and left[1].keys() == right[1].keys()
        and all(
            list(left[1][family]) == list(right[1][family])
            and all(torch.equal(left[1][family][tile], right[1][family][tile]) for tile in left[1][family])
            for family in left[1]
        )
    )


def the_file(store, pattern) -> Path:
    (path,) = Path(store.uri).rglob(pattern)
    return path


@pytest.mark.parametrize("pattern", ["*.image.arrow", "*.parquet", "manifest.json"])
def test_every_flipped_byte_is_seen_by_verification_and_never_changes_what_is_read(store, result, pattern):
    store.write("a", result)
    whole = read_all(store, "a")
    path = the_file(store, pattern)
    good = path.read_bytes()
    bits = random.Random(1)
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << bits.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError, match=path.name):
            store.verify("a")
        try:
            seen = read_all(store, "a")
        except ArtifactError:
            continue
        assert same(seen, whole), position  # a flip between the tiles
    path.write_bytes(good)
    store.verify("a")


@pytest.mark.parametrize("pattern", ["*.image.arrow", "*.parquet"])
def test_a_flipped_bit_of_a_number_is_an_error_that_names_the_file_and_the_remedy(store, result, pattern):
    artifact = store.write("a", result)
    path = the_file(store, pattern)
    broken = bytearray(path.read_bytes())
    start = artifact._manifest.families["image"][1].offset if pattern.endswith("arrow") else len(broken) // 2
    broken[start] ^= 1
    path.write_bytes(broken)
    with pytest.raises(ArtifactError, match=rf"a/{path.name} is damaged: delete the folder a .* same command again"):
        read_all(store, "a")
    if pattern.endswith("arrow"):
        assert torch.equal(artifact.tiles("image")["00000"], result.tensors["image"][0][1])  # its neighbour is well


@pytest.mark.parametrize("pattern", ["*.image.arrow", "*.parquet", "manifest.json"])
@pytest.mark.parametrize("left", [0, 1, 0.5, -1])
def test_a_truncated_file_is_an_error_that_names_it(store, result, pattern, left):
    store.write("a", result)
    path = the_file(store, pattern)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left) if isinstance(left, float) else left])
    for use in (store.verify, lambda place: read_all(store, place)):
        with pytest.raises(ArtifactError, match=path.name):
            use("a")


@pytest.mark.parametrize("pattern", ["*.image.arrow", "*.parquet"])
def test_a_missing_file_is_an_error_that_names_it(store, result, pattern):
    store.write("a", result)
    path = the_file(store, pattern)
    path.unlink()
    for use in (store.verify, lambda place: read_all(store, place)):
        with pytest.raises(ArtifactError, match=f"{path.name} is missing: delete the folder a "):
            use("a")


def test_the_remedy_works(store, result):
    first = store.write("a", result)
    the_file(store, "*.image.arrow").write_bytes(b"")
    store.drop("a")
    assert store.find("a") is None
    assert store.write("a", result).digest == first.digest
    store.verify("a")


def test_damage_of_an_adopted_part_is_found_through_the_whole(store, result):
    store.write("u/1", result)
    store.adopt("u", ["u/1"])
    path = the_file(store, "*.image.arrow")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=path.name):
        store.verify("u")


def test_an_unknown_format_is_refused_in_one_sentence(store):
    store.write("a", Result())
    path = the_file(store, "manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(ArtifactError, match="is in store format 2 and this version reads format 1") as caught:
        store.find("a")
    assert "\n" not in str(caught.value)
    path.write_text("[]")
    with pytest.raises(ArtifactError, match="is damaged"):
        store.find("a")
