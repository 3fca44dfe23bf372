"""Columns of text as token ids."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from afterfit.data.lengths import padded
from afterfit.data.numbers import Place
from afterfit.data.settings import TextColumns
from afterfit.errors import ConfigError, DataError


class TextReader:
    """A tokenizer bound to its columns. It is loaded when first used, once in each process."""

    def __init__(self, argument: str, settings: TextColumns):
        self.argument = argument
        self.settings = settings
        self.columns = [settings.column] if isinstance(settings.column, str) else list(settings.column)

    def read(self, table: pa.Table, place: Place) -> dict[str, Tensor]:
        """Token ids (B, T), the mask and, where the tokenizer makes them, the types.

        T is `max_length`, or as `pad_to` says.

        Raises:
            DataError: for a row without text.
            ConfigError: if padding is to be left out, and the tokenizer makes no mask.
        """
        values = self.read_full(table, place)
        if self.settings.pad_to == "max_length":
            return values
        longest = int(padded(_lengths(values, self.settings).max(), [self.settings.max_length])[0])
        kept = slice(0, longest) if self._tokenizer.padding_side == "right" else slice(-longest, None)
        return {name: ids[:, kept] for name, ids in values.items()}

    def lengths(self, table: pa.Table, place: Place) -> np.ndarray:
        """Tokens of each row, without padding, (B,)."""
        return _lengths(self.read_full(table, place), self.settings)

    def read_full(self, table: pa.Table, place: Place) -> dict[str, Tensor]:
        """The same with T equal to `max_length`."""
        texts = [self._texts(table, name, place) for name in self.columns]
        encoded = self._tokenizer(
            *texts,
            max_length=self.settings.max_length,
            padding="max_length",
            truncation=True,
            return_tensors="np",
        )
        ids = {str(name): torch.from_numpy(values).long() for name, values in encoded.items()}
        return {self.argument if name == "input_ids" else name: values for name, values in ids.items()}

    def digest(self) -> str:
        """Of everything in the tokenizer that decides on ids; where it was loaded from does not matter."""
        return self._loaded[1]

    @property
    def _tokenizer(self) -> Any:
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[Any, str]:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.settings.tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The tokenizer {self.settings.tokenizer!r} does not load; give a Hugging Face id or a "
                "directory made by `save_pretrained`."
            ) from error
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise ConfigError(f"The tokenizer {self.settings.tokenizer!r} has no padding token; set one and save it.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked, so which one does not matter
        return tokenizer, _digest(tokenizer)

    def _texts(self, table: pa.Table, name: str, place: Place) -> list[str]:
        texts = table.column(name).to_pylist()
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"The column {name!r} holds no text in {place(position)}; fill it in or leave it out.")
        return texts

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}


def _lengths(values: Mapping[str, Tensor], settings: TextColumns) -> np.ndarray:
    if "attention_mask" not in values:
        raise ConfigError(
            f"The tokenizer {settings.tokenizer!r} makes no attention mask, so padding would show in the outputs; "
            "leave out `pad_to: longest`."
        )
    return values["attention_mask"].sum(dim=1).numpy()


def _digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    rules.pop("padding", None)  # set by each call, and settled by `max_length`
    rules.pop("truncation", None)
    sides = [
        tokenizer.padding_side,
        tokenizer.truncation_side,
        tokenizer.pad_token_id,
        type(tokenizer).__name__,
    ]
    text = json.dumps([rules, sides, sorted(tokenizer.model_input_names)], sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
