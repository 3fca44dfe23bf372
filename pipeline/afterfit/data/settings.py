"""What a configuration says about a data set: its origin, its rows, its columns. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from afterfit.frozen import Frozen


class Splits(Frozen):
    """A choice of rows by a side table, as the UCI data sets come: columns `split`, `row` and `role`."""

    path: str
    """The side table, found as `path` of the data set is."""

    split: int = 0
    """Which split: the value of its column `split`."""

    role: str
    """Which part of the split, e.g. `train` or `test`: the value of its column `role`."""


class Standardise(Frozen):
    """Subtract a mean and divide by a standard deviation; a constant column is only centred."""

    mean: list[float] | None = None
    """One for each column, in the column's unit."""

    std: list[float] | None = None
    """One for each column, in the column's unit."""

    role: str | None = None
    """Instead of `mean` and `std`: measure them on the rows of this role of the data set's `splits`."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = self.mean is not None and self.std is not None and len(self.mean) == len(self.std)
        if given == (self.role is not None) or (self.mean is None) != (self.std is None):
            raise ValueError("give `mean` and `std` of equal length, or `role`, and not both")
        return self


class ImageColumn(Frozen):
    """A column of pictures, read as float32 (C, H, W)."""

    kind: Literal["image"] = "image"
    """Says that this is a picture."""

    column: str
    """The column: encoded bytes (PNG, JPEG, WebP, ...), a Hugging Face image, or raw 8-bit pixels."""

    decode: Literal["encoded", "raw"] = "encoded"
    """`encoded` for picture files as bytes, `raw` for pixels without a header."""

    channels: Literal[1, 3] = 3
    """Of an encoded picture: 3 reads RGB, 1 reads grey."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Of raw pixels: channels, height, width, whatever their order in the bytes."""

    order: Literal["chw", "hwc"] = "chw"
    """Of raw pixels: which dimension runs slowest to fastest in the bytes."""

    resize: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in pixels to resize to (bilinear); all pictures of a batch must have one size."""

    scale: float = 1 / 255
    """Factor from 8-bit pixel values to numbers."""

    mean: list[float] | None = None
    """Subtracted after scaling, one for each channel."""

    std: list[float] | None = None
    """Divided by after subtracting, one for each channel."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.decode == "raw") != (self.shape is not None):
            raise ValueError("`shape: [channels, height, width]` is needed for `decode: raw`, and only there")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.num_channels:
                raise ValueError(f"`{name}` needs one number for each of the {self.num_channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("`std` must be positive")
        return self

    @property
    def num_channels(self) -> int:
        """C."""
        return self.shape[0] if self.shape else self.channels


class TextColumns(Frozen):
    """A sentence, or a pair, read as token ids with a mask: int64 (T,), with T at most `max_length`.

    Gives the argument it is named for (usually `input_ids`), and `attention_mask`, and `token_type_ids`
    where the tokenizer makes them.
    """

    kind: Literal["text"] = "text"
    """Says that this is text."""

    column: str | tuple[str, str]
    """The column, or two columns for a pair of sentences."""

    tokenizer: str
    """Hugging Face id or directory of the tokenizer."""

    max_length: PositiveInt
    """Tokens that each example is cut to, and by default padded to."""

    pad_to: Literal["max_length", "longest"] = "max_length"
    """`longest`: only to the longest example of a micro-batch, whose examples are of like length then, and more where
    texts are short. Outputs are the same up to rounding where the network heeds the mask."""


class NumericColumns(Frozen):
    """Numbers read as float64 (D,); the network casts them to its own dtype."""

    kind: Literal["numeric"] = "numeric"
    """Says that these are numbers."""

    columns: str | list[str]
    """Several numeric columns in order, or one column of numbers or of lists of one length."""

    standardise: Standardise | None = None
    """Shift and scale of each column; none by default."""


class TokenColumn(Frozen):
    """Token ids that were made before, read as int64 (T,)."""

    kind: Literal["tokens"] = "tokens"
    """Says that these are token ids."""

    column: str
    """A column of lists of integers, all of one length."""


Reader = Annotated[ImageColumn | TextColumns | NumericColumns | TokenColumn, Field(discriminator="kind")]


class Columns(Frozen):
    """Which columns mean what."""

    label: str | None = None
    """Column of integer classes, counted from 0."""

    target: str | list[str] | None = None
    """Column or columns of numbers to predict; one column may hold lists."""

    target_standardise: Standardise | None = None
    """Shift and scale of the targets; none by default."""

    inputs: Mapping[str, str | Reader] = Field(default_factory=dict)
    """Name of forward's argument -> how to read it; a plain string takes a numeric column, or one of lists,
    as it is.
    Empty: every column but the label and the target is an argument of its own name."""

    @model_validator(mode="after")
    def _one_kind_of_target(self) -> Self:
        if self.label is not None and self.target is not None:
            raise ValueError("give `label` for classes or `target` for numbers, not both")
        if self.target_standardise is not None and self.target is None:
            raise ValueError("`target_standardise` needs `target`")
        return self


class Augment(Frozen):
    """Random changes of pictures, fixed by the seed and the example's index: the same in every pass.

    Training pictures stand in for new ones only where the change is one that the network was not trained with.
    """

    seed: NonNegativeInt = 0
    """Root of the draws; another seed gives another augmented copy of the data."""

    flip: bool = False
    """Mirror left to right with probability one half."""

    crop: NonNegativeInt = 0
    """Pixels of zeros added on each side before cutting the original size out at random."""

    zoom: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least part of the area that is cut out at random and resized to the whole; 1 leaves it out."""

    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Contrast and brightness are each multiplied by a random factor up to so much above or below 1."""


class DataSettings(Frozen):
    """A data set: one origin (`path` wins over `hub` where it exists), rows and columns."""

    path: str | None = None
    """File, folder, glob or URI (local, s3://, gs://) of Parquet, Arrow, Feather, CSV, JSON or JSONL. A
    relative one is looked up as it is, then below $AFTERFIT_DATA, then below ../shared/data."""

    hub: str | None = None
    """Hugging Face data set id or directory."""

    subset: str | None = None
    """Its configuration name, where it has several."""

    split: str = "train"
    """Its split, e.g. `train` or `test`."""

    streaming: bool = False
    """Do not download the data set: read its first `max_examples` rows once into the store."""

    hub_columns: Mapping[str, str] = Field(default_factory=dict)
    """Name used in `columns` -> name at the hub, where `path` and `hub` name them differently."""

    factory: str | None = None
    """`package.module:function`, called without arguments: returns anything with a length and integer
    indexing, or an iterable, of mappings."""

    splits: Splits | None = None
    """Choice of rows by a side table; all rows by default."""

    skip: NonNegativeInt = 0
    """First rows to leave out."""

    take: PositiveInt | None = None
    """Exactly so many rows after `skip`; fewer are an error."""

    max_examples: PositiveInt | None = None
    """At most so many rows after `skip`; needed for an iterable without a length."""

    columns: Columns = Columns()
    """What is read from a row, and how."""

    augment: Augment | None = None
    """Fixed random augmentation of the pictures; none by default."""

    @property
    def is_ragged(self) -> bool:
        """Whether a micro-batch has more examples where they are short."""
        return any(isinstance(how, TextColumns) and how.pad_to == "longest" for how in self.columns.inputs.values())

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = (self.path is not None or self.hub is not None) + (self.factory is not None)
        if origins != 1:
            raise ValueError("give exactly one origin: `path`, `hub`, both of these, or `factory`")
        if self.hub is None and (self.subset or self.hub_columns or self.streaming):
            raise ValueError("`subset`, `hub_columns` and `streaming` need `hub`")
        if self.streaming and self.max_examples is None:
            raise ValueError("`streaming` needs `max_examples`, the number of rows to keep")
        if self.factory is not None and ":" not in self.factory:
            raise ValueError("`factory` is written package.module:function")
        return self

    @model_validator(mode="after")
    def _usable_details(self) -> Self:
        readers = [reader for reader in self.columns.inputs.values() if not isinstance(reader, str)]
        numeric = [reader.standardise for reader in readers if isinstance(reader, NumericColumns)]
        scales = [scale for scale in (*numeric, self.columns.target_standardise) if scale is not None]
        if self.splits is None and any(scale.role is not None for scale in scales):
            raise ValueError("`standardise: {role: ...}` needs `splits`, the table that says which rows play the role")
        if self.augment is not None and not any(isinstance(reader, ImageColumn) for reader in readers):
            raise ValueError("`augment` needs an input of kind image")
        return self
