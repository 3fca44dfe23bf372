"""Curvature of any module in one call: G V, the diagonal of G, and the NTK, for those who need no posterior."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from afterfit.algebra import Batch
from afterfit.arithmetic import Arithmetic
from afterfit.errors import ConfigError
from afterfit.layout import Layout
from afterfit.network.functional import Network, OutputRule
from afterfit.network.likelihoods import Gaussian, Likelihood, likelihood_named
from afterfit.network.tokens import TokenCategorical, refuse_exact
from afterfit.precision import CORE, state_dtype
from afterfit.resources import GB
from afterfit.rows.planning import KEPT_SHARE
from afterfit.rows.protocol import Rows, cotangents_of, unit_cotangents
from afterfit.rows.tape import TapeBackend

Inputs = Mapping[str, Tensor]
"""A micro-batch, keyed by forward's argument names; with the tokens likelihood `labels` too, -100 where none counts."""


def ggn_times(
    module: nn.Module,
    batches: Iterable[Inputs],
    columns_Pk: Tensor,
    *,
    likelihood: Likelihood | str = "categorical",
    num_samples: int | None = None,
    seed: int = 0,
    weights: str | Sequence[str] = "*",
    output: OutputRule = "auto",
    memory_gb: float = 2.0,
    autocast: str | None = None,
    compiled: bool = False,
) -> Tensor:
    """G V, (P, k), for the GGN summed over all examples.

    Args:
        module: in eval mode.
        batches: micro-batches of inputs.
        columns_Pk: V, in the order of `module.named_parameters()`, of the chosen weights, flattened.
        likelihood: or its name; "tokens" is that of a language model, for which `num_samples` must be given.
        num_samples: Monte Carlo cotangents for each example, unbiased; exact ones if not given.
        seed: names the samples, with the position of an example.
        weights: globs that choose weights by name.
        output: how outputs become (B, C); `auto` as the likelihood needs them.
        memory_gb: budget of what is explicit at once.
        autocast: "bfloat16" or "float16" for passes in mixed precision, as `torch.autocast` makes them.
        compiled: whether `torch.compile` makes the products with rows.

    Cost: a forward and S backward passes for S cotangents (C - 1 of a categorical likelihood), then 4 P S k
    multiplications and additions an example, whatever the number of positions.
    """
    meaning = _meaning(likelihood, num_samples)
    network = Network(module, weights, output=_output_rule(meaning, output))
    _check_length(network.layout, columns_Pk)
    columns = _tiles(network.layout, columns_Pk)
    total = {name: torch.zeros_like(tile, dtype=state_dtype(network.dtype)) for name, tile in columns.items()}
    backend = TapeBackend(network, memory_gb, Arithmetic.of(autocast, compiled))
    for rows in _rows(backend, batches, meaning, num_samples, seed):
        for part in rows.parts(columns_Pk.shape[1]):
            part.transpose_times(part.times(columns), total)
    return torch.cat(list(total.values()))


def ggn_diagonal(
    module: nn.Module,
    batches: Iterable[Inputs],
    *,
    likelihood: Likelihood | str = "categorical",
    num_samples: int | None = None,
    seed: int = 0,
    weights: str | Sequence[str] = "*",
    output: OutputRule = "auto",
    memory_gb: float = 2.0,
    autocast: str | None = None,
    compiled: bool = False,
) -> Tensor:
    """The diagonal of the GGN summed over all examples, (P,). Arguments as of `ggn_times`.

    Cost: a forward and S backward passes, and as much as S more for the rows.
    """
    meaning = _meaning(likelihood, num_samples)
    network = Network(module, weights, output=_output_rule(meaning, output))
    dtype = state_dtype(network.dtype)
    total = {tile.name: torch.zeros(tile.size, dtype=dtype, device=network.device) for tile in network.layout}
    backend = TapeBackend(network, memory_gb, Arithmetic.of(autocast, compiled))
    for rows in _rows(backend, batches, meaning, num_samples, seed):
        rows.squares(total)
    return torch.cat(list(total.values()))


def ntk(
    module: nn.Module,
    inputs: Inputs,
    others: Inputs | None = None,
    *,
    weights: str | Sequence[str] = "*",
    output: OutputRule = "auto",
    memory_gb: float = 2.0,
    autocast: str | None = None,
    compiled: bool = False,
) -> Tensor:
    """The neural tangent kernel J(x) J(x')^T, (B C, B' C) in float64, of all outputs; of the inputs with themselves.

    Arguments as of `ggn_times`.

    Cost: a forward and C backward passes over both for each group of weights whose rows fit the memory, and
    2 B B' C^2 P.
    """
    if output == "tokens":
        raise ConfigError(
            "The kernel has a row for each output, which for the logits of all tokens are too many; set `output` to "
            "`last_token`."
        )
    network = Network(module, weights, output=output)
    backend = TapeBackend(network, memory_gb, Arithmetic.of(autocast, compiled))
    left = backend.rows(_batch(inputs, 0), unit_cotangents)
    right = left if others is None else backend.rows(_batch(others, 0), unit_cotangents)
    num_left, num_right = (len(rows.outputs_BC) * rows.num_cotangents for rows in (left, right))
    held = num_left if right is left else num_left + num_right
    total = torch.zeros(num_left, num_right, dtype=CORE, device=network.device)
    for group in network.layout.groups(held * left.dtype.itemsize, KEPT_SHARE * memory_gb * GB):
        made = dict(left.materialise(group))
        met = made if right is left else dict(right.materialise(group))
        for tile, rows_BSP in made.items():
            total += rows_BSP.flatten(0, 1) @ met[tile].flatten(0, 1).T
    return total


def _meaning(likelihood: Likelihood | str, num_samples: int | None) -> Likelihood:
    """The likelihood, where it has the cotangents that are asked for."""
    if likelihood == Gaussian.name:
        raise ConfigError(
            "The curvature of a Gaussian likelihood is in units of its noise; give `likelihood=Gaussian(variance)`, of "
            "`afterfit.network.likelihoods`."
        )
    meaning = likelihood_named(likelihood) if isinstance(likelihood, str) else likelihood
    if isinstance(meaning, TokenCategorical) and num_samples is None:
        refuse_exact()
    return meaning


def _output_rule(meaning: Likelihood, output: OutputRule) -> OutputRule:
    is_tokens = isinstance(meaning, TokenCategorical)
    if output != "auto" and is_tokens != (output == "tokens"):
        raise ConfigError(
            f"The {meaning.name} likelihood has no use for outputs by the rule {output!r}; leave out `output`, or set "
            f"`likelihood` to {'categorical' if is_tokens else 'tokens'}."
        )
    return "tokens" if is_tokens else output


def _rows(
    backend: TapeBackend,
    batches: Iterable[Inputs],
    meaning: Likelihood,
    num_samples: int | None,
    seed: int,
) -> Iterable[Rows]:
    first = 0
    for inputs in batches:
        batch = _batch(inputs, first)
        here = meaning
        if isinstance(meaning, TokenCategorical):
            batch = _with_labels(batch)
            here = meaning.on(batch)
        first += len(batch)
        yield backend.rows(batch, cotangents_of(here, num_samples, seed, batch))


def _batch(inputs: Inputs, first: int) -> Batch:
    num_examples = len(next(iter(inputs.values())))
    return Batch(dict(inputs), None, torch.arange(first, first + num_examples))


def _with_labels(batch: Batch) -> Batch:
    """Labels as targets: from them the networks of transformers would compute a loss, which no one needs."""
    inputs = dict(batch.inputs)
    return Batch(inputs, inputs.pop("labels", None), batch.indexes)


def _tiles(layout: Layout, columns_Pk: Tensor) -> dict[str, Tensor]:
    return {tile.name: columns_Pk[tile.offset : tile.offset + tile.size] for tile in layout}


def _check_length(layout: Layout, columns_Pk: Tensor) -> None:
    if columns_Pk.dim() != 2 or len(columns_Pk) != layout.num_weights:
        raise ConfigError(
            f"The columns have shape {tuple(columns_Pk.shape)}; the chosen weights need ({layout.num_weights}, k)."
        )
