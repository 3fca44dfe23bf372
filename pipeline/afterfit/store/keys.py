"""Content keys: a hash of everything that changes the numbers, and of nothing else."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256
from typing import Any

from pydantic import BaseModel

DIGITS = 16


def canonical(value: Any, name: str = "value") -> Any:
    """The one JSON form of a value, the same in every process and on every machine.

    Tuples and lists are lists. Floats are exact (hexadecimal). Dataclasses and pydantic models carry their
    class name, their `VERSION` where they have one, and their fields; what is not a plain list or scalar is
    tagged, so that two values of different kinds never look alike.

    Args:
        value: None, bool, int, float, str, enum member, dataclass, pydantic model, list, tuple, or a mapping
            with string keys, nested at will.
        name: what the value is called in an error.

    Raises:
        TypeError: naming the value that has no canonical form.
    """
    if isinstance(value, Enum):
        return {"enum": type(value).__name__, "value": canonical(value.value, name)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return _record(value, [field.name for field in fields(value)], name)
    if isinstance(value, BaseModel):
        return _record(value, list(type(value).model_fields), name)
    if isinstance(value, Mapping):
        return {"mapping": {_text(key, name): canonical(item, f"{name}.{key}") for key, item in value.items()}}
    raise TypeError(
        f"{name} is a {type(value).__name__}, which has no canonical form and cannot be part of a key; "
        "use numbers, strings, lists, mappings, enums or records of these."
    )


def content_key(recipe: Any, inputs: Mapping[str, str], **more: Any) -> str:
    """The key of a stage: 16 hexadecimal digits that change when its numbers may.

    Args:
        recipe: frozen record of choices.
        inputs: role -> key of the stage that it comes from.
        **more: anything else that changes the numbers, such as the shard table.

    Raises:
        TypeError: naming the value that has no canonical form.
    """
    whole = {
        "recipe": canonical(recipe, "recipe"),
        "inputs": canonical(inputs, "inputs"),
        "more": {name: canonical(value, name) for name, value in more.items()},
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:DIGITS]


def _record(value: Any, names: list[str], name: str) -> dict[str, Any]:
    kind = type(value)
    return {
        "record": kind.__name__,
        "version": canonical(getattr(kind, "VERSION", None), f"{name}.VERSION"),
        "fields": {field: canonical(getattr(value, field), f"{name}.{field}") for field in names},
    }


def _text(key: Any, name: str) -> str:
    if isinstance(key, Enum) or not isinstance(key, str):
        raise TypeError(f"{name} has the key {key!r}; what is part of a content key has strings as keys.")
    return key
