"""What a configuration says about a network: where it comes from, which weights matter. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from afterfit.frozen import Frozen

AUTO_CLASSES: Mapping[str, str] = {
    "image_classification": "AutoModelForImageClassification",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "audio_classification": "AutoModelForAudioClassification",
    "model": "AutoModel",
}
"""Task -> the class of `transformers` that builds networks for it."""


class NetworkSettings(Frozen):
    """A network by exactly one origin: `hub`, `path`, `config: {model_type: ...}` alone, or `factory`."""

    hub: str | None = None
    """Hugging Face model id."""

    revision: str | None = None
    """Commit, tag or branch at the hub; a full commit hash needs no look-up."""

    path: str | None = None
    """Directory that `save_pretrained` wrote. A relative one is looked up as it is, then below
    $AFTERFIT_MODELS, then below ../shared/models."""

    auto: Literal[
        "image_classification",
        "sequence_classification",
        "token_classification",
        "causal_lm",
        "masked_lm",
        "audio_classification",
        "model",
    ] = "image_classification"
    """Which kind of `transformers` network to build."""

    config: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of the transformers configuration to set, e.g. `num_labels` or `attn_implementation`. With
    `model_type`, and no other origin, the network is built from it with random weights."""

    fresh: str | list[str] | None = None
    """Glob or globs of weights that the checkpoint lacks and that are drawn at random, e.g. a new head."""

    factory: str | None = None
    """`package.module:function` that returns the module; it must be importable on every worker."""

    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""

    weights: str | None = None
    """Safetensors file for a network from `factory` or from `config` alone, looked up as `path` is."""

    seed: NonNegativeInt = 0
    """Of weights that are drawn at random."""

    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    """Floating-point type to convert to; by default the network's own."""

    choose: str | list[str] = "*"
    """Glob or globs of the weights that the posterior covers."""

    output: Literal["auto", "last_token"] = "auto"
    """How outputs become one row per example: logits as they are, or those of the last attended position."""

    @property
    def is_random(self) -> bool:
        """Whether the network is built from `config` alone."""
        return self.hub is None and self.path is None and self.factory is None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("hub", "path", "factory") if getattr(self, name) is not None]
        if len(given) > 1 or (not given and "model_type" not in self.config):
            raise ValueError("give exactly one origin: `hub`, `path`, `factory`, or `config` with a `model_type`")
        if given and "model_type" in self.config:
            raise ValueError(f"`config.model_type` builds a new network; remove it or `{given[0]}`")
        return self

    @model_validator(mode="after")
    def _details_have_a_use(self) -> Self:
        if self.factory is not None and ":" not in self.factory:
            raise ValueError("`factory` is written package.module:function")
        if self.factory is not None and (self.config or self.fresh):
            raise ValueError("`config` and `fresh` are for transformers networks; a factory takes `arguments`")
        if self.factory is None and self.arguments:
            raise ValueError("`arguments` need `factory`")
        if self.hub is not None and self.hub.startswith(("/", ".", "~")):
            raise ValueError("`hub` is a Hugging Face id; a directory is given as `path`")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` needs `hub`")
        pretrained = self.hub is not None or self.path is not None
        if self.weights is not None and pretrained:
            raise ValueError("`weights` is for `factory` or `config` alone; `hub` and `path` bring their own")
        if self.fresh is not None and not pretrained:
            raise ValueError("`fresh` needs `hub` or `path`")
        return self
