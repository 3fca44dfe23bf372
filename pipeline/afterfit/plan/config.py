"""A run as a YAML file: every mistake is named with its line and the nearest name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.data.settings import DataSettings
from afterfit.errors import ConfigError
from afterfit.frozen import Frozen
from afterfit.network.settings import NetworkSettings
from afterfit.training.settings import TrainingSettings


class LikelihoodSettings(Frozen):
    """What the network's outputs mean."""

    name: Literal["categorical", "bernoulli", "gaussian", "tokens"] = "categorical"
    """Classes by logits, yes or no by logits, or numbers with Gaussian noise; `tokens`, a class for each token, has
    products with the curvature in `afterfit.rows`, but no method fits it."""
    noise_variance: PositiveFloat | None = None
    """Of a Gaussian, in squared units of the target; fitted on the training data by default."""


RoleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$")]


class DataRoles(Frozen):
    """Which data set plays which role."""

    train: DataSettings
    """What the network was, or will be, trained on; the posterior is fitted on it."""
    extensions: Mapping[RoleName, DataSettings] = Field(default_factory=dict)
    """Name -> data added to `train` later: finished sums are extended, not done again."""
    validation: DataSettings | None = None
    """For choosing prior precision, temperature and data fraction."""
    evaluation: Mapping[RoleName, DataSettings] = Field(default_factory=dict)
    """Name -> data with targets to score; the first one is the inside of out-of-distribution detection."""
    out_of_distribution: Mapping[RoleName, DataSettings] = Field(default_factory=dict)
    """Name -> data that the network should be unsure about."""


class PredictionSettings(Frozen):
    """From the posterior over weights to outputs, and from those to probabilities."""

    link: Literal["monte_carlo", "probit", "laplace_bridge"] = "monte_carlo"
    """How the softmax is averaged over the Gaussian."""
    num_draws: PositiveInt = 512
    """Draws of the Monte Carlo link, from a Gaussian; stored draws are all taken, each once."""
    by: Literal["linearised", "network"] = "linearised"
    """What predicts under stored draws: the network linearised at the trained weights, or the network itself."""


class RunConfig(Frozen):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """For people, and for the default store `runs/<name>`."""
    store: str | None = None
    """Directory or URI (s3://, gs://) of the store."""
    network: NetworkSettings
    """Which network."""
    training: TrainingSettings | None = None
    """How to train it; without, its weights are taken as they are."""
    likelihood: LikelihoodSettings = LikelihoodSettings()
    """What its outputs mean."""
    data: DataRoles
    """Which data."""
    method: Mapping[str, Any] = Field(default_factory=lambda: {"name": "ella"})
    """Which method, by `name`, and its choices; `afterfit methods` lists them."""
    prediction: PredictionSettings = PredictionSettings()
    """How probabilities are made."""
    memory_gb: PositiveFloat = 2.0
    """Budget of one worker for what is explicit at once, besides the network and its activations. Part of the
    keys, since it fixes the micro-batch."""
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    """Examples of a micro-batch; `auto` computes it from sizes and memory."""
    rows: Arithmetic = PLAIN
    """In which arithmetic rows of the Jacobian are made."""
    num_shards: PositiveInt | Literal["auto"] = "auto"
    """Of every data set; `auto` makes shards of at least 30 s on a reference device."""
    tile_weights: PositiveInt | None = None
    """Weights of a tile; chosen from the network's size by default."""

    @property
    def where(self) -> str:
        """The store's URI."""
        return self.store or f"runs/{self.name}"


def read_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, set what `--set` says, and check everything that can be checked without torch.

    Args:
        path: of the file.
        overrides: "path.to.field=value" each, the value in YAML.

    Raises:
        ConfigError: one sentence for the first mistake, with its line.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"The configuration {path!r} cannot be read ({error.strerror}); check the path.") from error
    return parse_config(text, overrides, path)


def parse_config(text: str, overrides: Sequence[str] = (), name: str = "configuration") -> RunConfig:
    """The same from text."""
    try:
        tree = yaml.safe_load(text)
        lines = _lines(yaml.compose(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: this is not YAML ({getattr(error, 'problem', error)}).") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: a configuration is a mapping of fields; see configs/quickstart.yaml.")
    for override in overrides:
        _set(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_sentence(error, tree, lines, name)) from error


def _set(tree: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"`--set {override}` has no value; write path.to.field=value.")
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"`--set {override}`: {parent!r} is not a mapping, so nothing can be set below it.")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"`--set {override}`: the value is not YAML; quote it.") from error


Path_ = tuple[str | int, ...]


def _lines(node: yaml.Node | None, path: Path_ = ()) -> dict[Path_, int]:
    """Path of every key -> its line, counted from 1."""
    found: dict[Path_, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[(*path, key.value)] = key.start_mark.line + 1
            found |= _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            found |= _lines(value, (*path, number))
    return found


def _sentence(error: ValidationError, tree: dict[str, Any], lines: Mapping[Path_, int], name: str) -> str:
    mistakes = [(_place(tree, mistake["loc"]), mistake) for mistake in error.errors()]
    # Each member of a union adds its own mistakes below one place: the one that got furthest was meant.
    first = mistakes[0][0]
    same = [(place, mistake) for place, mistake in mistakes if place[: len(first)] == first]
    place, deepest = max(same, key=lambda found: (len(found[1]["loc"]), found[1]["type"] == "extra_forbidden"))
    line = next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), None)
    where = f"{name}:{line}" if line else name
    dotted = ".".join(str(part) for part in place) or "the configuration"
    rest = len(mistakes) - len(same)
    more = f" ({rest} more)" if rest else ""
    if deepest["type"] == "extra_forbidden":
        known = _fields_at(place[:-1], tree)
        near = get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}."
        return f"{where}: there is no field {dotted!r}; {hint}{more}"
    if deepest["type"] == "missing":
        missing = ".".join(str(part) for part in (*place, deepest["loc"][-1]))
        return f"{where}: the field {missing!r} is missing; add it.{more}"
    alternatives = [mistake for _, mistake in same if len(mistake["loc"]) == len(deepest["loc"])]
    said = dict.fromkeys(mistake["msg"].removeprefix("Value error, ") for mistake in alternatives)
    what = ", or ".join(f"{text[:1].lower()}{text[1:]}" for text in said)
    return f"{where}: {dotted}: {what}.{more}"


def _place(tree: Any, loc: Path_) -> Path_:
    """The part of pydantic's location that is in the file: without names of a union's members."""
    node, place = tree, []
    for step in loc:
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(step)
    return tuple(place)


def _fields_at(place: Path_, tree: Mapping[Any, Any]) -> list[str]:
    """Names of the fields that are known at a place."""
    models: list[Any] = [RunConfig]
    node: Any = tree
    for step in place:
        node = node[step]
        fields = [model.model_fields[str(step)] for model in models if step in model.model_fields]
        models = [inner for field in fields for inner in _models(field.annotation)] or models
        kind = node.get("kind") if isinstance(node, dict) else None
        models = [model for model in models if _kind(model) == kind] or models
    return sorted({name for model in models for name in model.model_fields})


def _kind(model: Any) -> Any:
    """The tag of a member of a union."""
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]
