"""What is written is what is read."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterfit.algebra import Result
from afterfit.errors import ArtifactError, ConfigError
from afterfit.store.arrow import DTYPES
from afterfit.store.directory import open_store

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=6)


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of any bits whatever, NaN and infinities included."""
    count = int(np.prod(shape, dtype=int))
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(0, 256, (count * size,), generator=generator, dtype=torch.uint8)
    return bits.view(dtype).reshape(shape)


def assert_same_bits(left: torch.Tensor, right: torch.Tensor) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


@settings(max_examples=60)
@given(TENSORS)
def test_every_dtype_and_shape_comes_back_bit_for_bit_even_mixed_in_one_family(kinds):
    tiles = [(f"t{index}", random_bits(DTYPES[dtype][0], shape, index)) for index, (dtype, shape) in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        store.write("a", Result(tensors={"x": tiles}))
        read = store.read("a").tiles("x")
        assert list(read) == [name for name, _ in tiles]
        for name, tensor in tiles:
            assert_same_bits(read[name], tensor)
        store.verify("a")


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("trailing", [(), (3,), (2, 5)])
def test_any_arrow_reader_sees_a_tile_as_a_record_batch(store, dtype, trailing):
    tiles = [(str(rows), random_bits(DTYPES[dtype][0], (rows, *trailing), rows)) for rows in (4, 1, 7)]
    store.write("a", Result(tensors={"x": tiles}))
    (path,) = Path(store.uri).rglob("*.x.arrow")
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        assert reader.num_record_batches == 3
        for index, (_, tensor) in enumerate(tiles):
            batch = reader.get_batch(index)
            batch.validate(full=True)
            column = batch.column("values")
            values = column.flatten() if trailing else column
            assert len(column) == len(tensor)
            bits = values.to_numpy().view(np.uint8)
            assert np.array_equal(bits, tensor.reshape(-1).view(torch.uint8).numpy())


def test_a_whole_family_is_its_tiles_one_below_the_other(store, result):
    artifact = store.write("a", result)
    assert torch.equal(artifact.tensor("image"), torch.cat([tile for _, tile in result.tensors["image"]]))


def test_scalars_are_rows_of_one_and_a_single_tile_keeps_its_shape(store):
    tiles = {"many": [("a", torch.tensor(1.0)), ("b", torch.tensor(2.0))], "one": [("a", torch.tensor(3.0))]}
    artifact = store.write("a", Result(tensors=tiles))
    assert torch.equal(artifact.tensor("many"), torch.tensor([1.0, 2.0]))
    assert torch.equal(artifact.tensor("one"), torch.tensor(3.0))


@pytest.mark.parametrize("other", [torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64)])
def test_tiles_of_different_kinds_cannot_be_concatenated(store, other):
    artifact = store.write("a", Result(tensors={"x": [("a", torch.zeros(2)), ("b", other)]}))
    with pytest.raises(ArtifactError, match="differ in kind"):
        artifact.tensor("x")


def test_views_and_weights_that_need_gradients_are_stored_as_their_values(store):
    base = torch.arange(12.0).reshape(3, 4)
    weights = torch.nn.Parameter(base[1:])
    artifact = store.write("a", Result(tensors={"x": [("t", base.T[1:]), ("w", weights)]}))
    assert torch.equal(artifact.tiles("x")["t"], base.T[1:])
    assert torch.equal(artifact.tiles("x")["w"], base[1:])


def test_a_state_comes_back_under_its_own_names(store):
    state = {"image/00000": torch.ones(2, 3), "image/00001": torch.zeros(1, 3), "step": torch.tensor(4)}
    read = store.write("a", Result.of_state(state)).state()
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor)


def test_tables_facts_and_notes_come_back(store, result):
    store.write("a", result, about={"recipe": {"rank": 3}})
    read = store.read("a")
    assert read.table("scores").equals(result.tables["scores"])
    assert read.facts == result.facts
    assert read.about == {"recipe": {"rank": 3}}
    assert set(read.made_with) == {"afterfit", "torch", "pyarrow", "device", "threads"}
    assert (read.families, read.tables) == (("image", "nothing"), ("scores",))
    files = [path for path in Path(store.uri).rglob("*") if path.suffix in {".arrow", ".parquet"}]
    assert read.num_bytes == sum(path.stat().st_size for path in files)
    assert pq.read_table(next(path for path in files if path.suffix == ".parquet")).num_rows == 2


def test_facts_are_the_same_before_and_after_reading(store):
    written = store.write("a", Result(facts={"shape": (2, 3), "loss": float("inf")}))
    assert written.facts == store.read("a").facts == {"shape": [2, 3], "loss": float("inf")}


def test_writing_takes_one_tile_at_a_time(store):
    alive = 0
    most = 0

    class Tile(torch.Tensor):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def tiles():
        nonlocal alive, most
        for index in range(5):
            alive += 1
            most = max(most, alive)
            yield str(index), torch.full((4,), float(index)).as_subclass(Tile)

    artifact = store.write("a", Result(tensors={"x": tiles()}))
    assert len(artifact.tiles("x")) == 5
    assert most <= 2  # the one that the generator makes, and the one that the writer has not let go yet


def test_reading_one_tile_opens_its_file_and_no_other(store, result, monkeypatch):
    artifact = store.write("a", result)
    tiles = artifact.tiles("image")
    opened = []
    original = type(store._files).open_input
    monkeypatch.setattr(
        type(store._files), "open_input", lambda files, path: opened.append(path) or original(files, path)
    )
    assert "00001" in tiles
    assert len(tiles) == 3
    assert opened == []
    first, second = tiles["00001"], tiles["00001"]
    assert len(opened) == 2
    first.zero_()
    assert second.abs().sum() > 0  # a tile is the reader's own, to work in


def test_an_artifact_and_a_store_travel_as_their_address(store, result):
    artifact = store.write("a", result)
    sent = pickle.dumps((store, artifact))
    assert len(sent) < 1000
    other_store, other = pickle.loads(sent)
    assert (other.place, other.digest, other_store.uri) == (artifact.place, artifact.digest, store.uri)
    assert torch.equal(other.tensor("image"), artifact.tensor("image"))
    assert other_store.find("a").digest == artifact.digest


def test_an_artifact_that_changed_on_the_way_is_not_taken_for_the_old_one(store, result):
    sent = pickle.dumps(store.write("a", result))
    store.drop("a")
    store.write("a", Result(facts={"other": 1}))
    with pytest.raises(ArtifactError, match="has changed since it was handed over"):
        _ = pickle.loads(sent).facts


def test_the_digest_is_of_the_content_and_of_nothing_else(store, result):
    first = store.write("a/1", result, about={"when": 1})
    again = store.write("b/2", result, about={"when": 2})
    assert first.digest == again.digest
    image = list(result.tensors["image"])
    changed = [
        Result(tensors=result.tensors, tables=result.tables, facts={**result.facts, "scale": 0.2}),
        Result(tensors=result.tensors, facts=result.facts),
        Result(tensors={"image": image}, tables=result.tables, facts=result.facts),
        Result(tensors={**result.tensors, "image": image[:2]}, tables=result.tables, facts=result.facts),
        Result(tensors={**result.tensors, "image": image[::-1]}, tables=result.tables, facts=result.facts),
        Result(
            tensors={**result.tensors, "image": [(name, tile.reshape(-1)) for name, tile in image]},
            tables=result.tables,
            facts=result.facts,
        ),
        Result(
            tensors={**result.tensors, "image": [(name, tile.view(torch.int32)) for name, tile in image]},
            tables=result.tables,
            facts=result.facts,
        ),
    ]
    digests = {store.write(f"c/{index}", each).digest for index, each in enumerate(changed)}
    assert len(digests | {first.digest}) == len(changed) + 1


def test_how_a_table_was_put_together_is_not_part_of_its_digest(store):
    whole = pa.table({"a": [1, 2, 3]})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    digests = {store.write(name, Result(tables={"t": t})).digest for name, t in (("a", whole), ("b", pieces))}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "bad",
    [
        Result(tensors={"x": [("a", torch.zeros(2)), ("a", torch.ones(2))]}),
        Result(tensors={"x/y": [("a", torch.zeros(2))]}),
        Result(tensors={"x": [("a", torch.zeros(2, dtype=torch.complex64))]}),
        Result(tables={"": pa.table({"a": [1]})}),
        Result(facts={"f": torch.zeros(1)}),
    ],
    ids=["tile twice", "family with a slash", "complex", "table without a name", "tensor as a fact"],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(store, bad):
    with pytest.raises(ConfigError):
        store.write("a", bad)
    assert store.find("a") is None
    assert [path for path in Path(store.uri).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("place", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".a", "a/manifest.json", "a\\b"])
def test_a_place_that_is_no_path_below_the_store_is_refused(store, place):
    with pytest.raises(ConfigError, match="cannot name a place"):
        store.find(place)


def test_what_is_not_there_is_named(store, result):
    artifact = store.write("a", result)
    with pytest.raises(ArtifactError, match="it has image, nothing"):
        artifact.tiles("pictures")
    with pytest.raises(ArtifactError, match="it has scores"):
        artifact.table("spectrum")
    with pytest.raises(ArtifactError, match="has no tiles"):
        artifact.tensor("nothing")
    with pytest.raises(KeyError):
        artifact.tiles("image")["9"]
    with pytest.raises(ArtifactError, match="b is not finished"):
        store.read("b")
