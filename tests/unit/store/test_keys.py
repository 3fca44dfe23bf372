"""Content keys."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterfit.frozen import Frozen
from afterfit.seeds import Seed
from afterfit.store.keys import canonical, content_key


class Link(StrEnum):
    PROBIT = "probit"
    BRIDGE = "bridge"


class Settings(Frozen):
    rank: int = 3
    damping: float = 0.5


@dataclass(frozen=True)
class Recipe:
    VERSION: ClassVar[int] = 1
    rank: int = 3
    scale: float = 0.1
    name: str = "x"
    link: Link = Link.PROBIT
    nothing: None = None
    shards: tuple[tuple[int, int], ...] = ((0, 5), (5, 9))
    more: Mapping[str, Any] = field(default_factory=lambda: {"b": True, "a": 1})
    settings: Settings = field(default_factory=Settings)
    seed: Seed = field(default_factory=lambda: Seed(1, ("probe",)))


@dataclass(frozen=True)
class NewRecipe(Recipe):
    VERSION: ClassVar[int] = 2


NewRecipe.__name__ = "Recipe"


def test_the_key_of_a_recipe_is_what_it_was_when_this_test_was_written():
    assert content_key(Recipe(), {"gram": "00ff"}, shards=[1, 2]) == "be2d5cc97bef8af1"


@pytest.mark.parametrize(
    "changed",
    [
        Recipe(rank=4),
        Recipe(scale=0.1 + 2**-56),
        Recipe(name="y"),
        Recipe(link=Link.BRIDGE),
        Recipe(nothing=False),  # type: ignore[arg-type]
        Recipe(shards=((0, 5), (5, 10))),
        Recipe(shards=((0, 5, 5, 9),)),
        Recipe(more={"b": 1, "a": 1}),
        Recipe(more={"b": True}),
        Recipe(settings=Settings(damping=0.25)),
        Recipe(seed=Seed(2, ("probe",))),
        Recipe(seed=Seed(1, ("landmark",))),
        NewRecipe(),
    ],
    ids=repr,
)
def test_changing_any_field_or_the_version_changes_the_key(changed):
    assert content_key(changed, {}) != content_key(Recipe(), {})


def test_inputs_and_further_values_are_part_of_the_key():
    keys = {
        content_key(Recipe(), {}),
        content_key(Recipe(), {"gram": "1"}),
        content_key(Recipe(), {"image": "1"}),
        content_key(Recipe(), {"gram": "2"}),
        content_key(Recipe(), {}, gram="1"),
    }
    assert len(keys) == 5


def test_the_order_of_a_mapping_is_not_part_of_the_key():
    assert content_key(Recipe(), {"a": "1", "b": "2"}) == content_key(
        replace(Recipe(), more={"a": 1, "b": True}), {"b": "2", "a": "1"}
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("1", 1),
        (None, "None"),
        (0.5, (0.5).hex()),
        (0.5, {"float": (0.5).hex()}),
        (Link.PROBIT, "probit"),
        (Link.PROBIT, {"enum": "Link", "value": "probit"}),
        ({"rank": 3, "damping": 0.5}, Settings()),
        ({"a": 1}, {"mapping": {"a": 1}}),
    ],
)
def test_values_of_different_kinds_never_look_alike(left, right):
    assert content_key(left, {}) != content_key(right, {})


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_floats_are_exact(left, right):
    assert (canonical(left) == canonical(right)) == (left.hex() == right.hex())


class Colour(Enum):
    RED = object()


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        ({"a": [1, {2, 3}]}, "recipe.a[1]"),
        (replace(Recipe(), name=Path("/tmp")), "recipe.name"),  # type: ignore[arg-type]
        (replace(Recipe(), more={1: 2}), "recipe.more"),  # type: ignore[arg-type]
        (replace(Recipe(), more={"f": len}), "recipe.more.f"),
        (replace(Recipe(), seed=Seed), "recipe.seed"),  # type: ignore[arg-type]
        (Colour.RED, "recipe"),
        (b"bytes", "recipe"),
    ],
)
def test_a_value_without_a_canonical_form_is_an_error_that_names_it(value, culprit):
    with pytest.raises(TypeError) as caught:
        content_key(value, {})
    assert str(caught.value).startswith(f"{culprit} ")


def test_keys_do_not_import_torch():
    code = "import sys, afterfit.store.keys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
