"""What one forward pass does with the chosen weights: a mode under which every operation is seen.

Operations, not modules, are watched: whatever class calls `linear`, `conv2d` or `embedding`, and however often it
does so, the input and the place of the output in the graph are kept. Weights that meet the data elementwise (class
tokens, positions, norms written by hand) are spread over the examples first, so that each example has its own
gradient. What has no rule is named, never skipped.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, _engine_run_backward, get_gradient_edge
from torch.overrides import TorchFunctionMode

from afterfit.rows.counts import Counts
from afterfit.rows.rules import rule_for
from afterfit.rows.uses.lookup import Lookup
from afterfit.rows.uses.spread import Spread
from afterfit.rows.uses.use import Use

_TAG = "_afterfit"
_BATCHED = "batched"


class Weight(NamedTuple):
    """Tag of a chosen weight, or of what was made of it without any data."""

    block: str
    form: str = "itself"  # itself | transposed | looked up | made
    tokens: Tensor | None = None  # of a looked up one


class Recording(TorchFunctionMode):
    """Runs a forward pass and keeps what the rows of its Jacobian are made of.

    Args:
        leaves: block name -> the tensor that stands for it in this forward; all of them require gradients.
        num_examples: B; inputs have it as their first dimension.
        module: whose own parameters checkpointed layers find when they run again. Blocks that are not among the leaves
            are brought by accelerate's hooks, as other tensors each time: they are known by the layer that runs.

    After the pass, `uses` holds every use of a block, `edges` the places in the graph whose gradients they need,
    and `without_rule` the blocks for which some operation has none, with its name.
    """

    def __init__(self, leaves: Mapping[str, Tensor], num_examples: int, module: nn.Module, away: Container[str] = ()):
        super().__init__()
        self.leaves = dict(leaves)
        self.num_examples = num_examples
        self.edges: list[GradientEdge] = []
        self.sizes: list[int] = []  # numbers of one cotangent's gradient at each edge
        self.uses: dict[str, list[Use]] = {}
        self.without_rule: dict[str, str] = {}
        self._is_over = False
        originals = {name: weight for name, weight in module.named_parameters() if name in leaves}
        self._tags = {id(tensor): Weight(name) for made in (leaves, originals) for name, tensor in made.items()}
        self._away = _owners(module, away)
        self._running: list[nn.Module] = []

    def mark(self, inputs: Mapping[str, Tensor]) -> None:
        """These depend on the examples."""
        for value in inputs.values():
            setattr(value, _TAG, _BATCHED)

    def gradients(
        self, output: Tensor, inputs: Sequence[Tensor | GradientEdge], cotangent: Tensor
    ) -> Sequence[Tensor | None]:
        """A backward pass; None for what the output does not depend on.

        Checkpointed layers that it runs again do what they did, under this mode, and nothing new is noted. The public
        function would leave the mode first: it is itself an operation that modes see.
        """
        self._is_over = True
        with self:
            return _engine_run_backward(
                (output,), (cotangent,), True, False, tuple(inputs), True, accumulate_grad=False
            )  # retain the graph, build none, allow what is unused

    def to_weights(self, output: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        """A backward pass to the weights: block -> its gradient; blocks that were never met have none."""
        if not output.requires_grad or not self.leaves:
            return {}
        found = self.gradients(output, list(self.leaves.values()), cotangent)
        pairs = zip(self.leaves, found, strict=True)
        return {name: gradient for name, gradient in pairs if gradient is not None}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tags = [self._tag(tensor) for tensor in _tensors((args, kwargs))]
        batched = _BATCHED in tags
        weights = [tag for tag in tags if isinstance(tag, Weight)]
        if not weights:
            result = func(*args, **kwargs)
        elif batched:
            result = self._meet(func, args, kwargs, weights)
        else:
            return self._derive(func, args, kwargs, weights)
        if batched:
            for tensor in _tensors(result):
                setattr(tensor, _TAG, _BATCHED)
        return result

    def _tag(self, tensor: Tensor) -> Any:
        tag = self._tags.get(id(tensor)) or getattr(tensor, _TAG, None) or self._brought(tensor)
        # What a checkpoint has kept comes back as another tensor.
        return _BATCHED if tag is None and self._is_over and tensor.requires_grad else tag

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, layers whose weights are away are noticed when they run."""
        handles = []
        for owner in self._away:
            handles.append(owner.register_forward_pre_hook(lambda layer, _: self._running.append(layer)))
            handles.append(owner.register_forward_hook(lambda *_: self._running.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _brought(self, tensor: Tensor) -> Weight | None:
        """The tag of a weight that a hook has brought for a layer that runs."""
        if not self._running or not isinstance(tensor, nn.Parameter):
            return None
        for layer in reversed(self._running):
            for name, block in self._away[layer].items():
                if layer._parameters[name] is tensor:
                    self.leaves[block] = tensor
                    self._tags[id(tensor)] = Weight(block)
                    return self._tags[id(tensor)]
        return None

    @property
    def counts(self) -> tuple[Counts, ...]:
        """Of every use."""
        return tuple(use.counts for uses in self.uses.values() for use in uses)

    # Weights and data meet.

    def _meet(self, func: Callable, args: tuple, kwargs: dict[str, Any], weights: list[Weight]) -> Any:
        rule = rule_for(func)
        if rule is not None:
            result = rule(self, func, args, kwargs)
            if result is not None:
                return result
        result = func(*args, **kwargs)
        if any(True for _ in _tensors(result)):
            for weight in weights:
                self.without_rule.setdefault(weight.block, func.__name__)
        return result

    def _derive(self, func: Callable, args: tuple, kwargs: dict[str, Any], weights: list[Weight]) -> Any:
        """Weights alone, or with constants."""
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            for tensor in _tensors(result):
                if tensor.requires_grad:
                    setattr(tensor, _TAG, Weight(weights[0].block, "made"))
            return result
        if not result.requires_grad or self._tag(result) is not None:
            return result
        name, first = func.__name__, weights[0]
        if len({weight.block for weight in weights}) > 1:
            for weight in weights:
                self.without_rule.setdefault(weight.block, name)
            return result
        if func is torch.nn.functional.embedding and first.form == "itself":
            tag = Weight(first.block, "looked up", args[0])
        elif name in _SPREADING and self._spreads(result, args[0]):
            self.spread(first, args[0], result)
            tag = _BATCHED
        elif name in _SAME and result.shape == args[0].shape:
            tag = first
        elif name in _TRANSPOSING and result.dim() == 2 and first.form in ("itself", "transposed"):
            tag = first._replace(form="transposed" if first.form == "itself" else "itself")
        else:
            tag = Weight(first.block, "made")
        setattr(result, _TAG, tag)
        return result

    def _spreads(self, result: Tensor, weight: Tensor) -> bool:
        """Whether a weight was copied once for each example."""
        if not result.dim() or result.shape[0] != self.num_examples:
            return False
        return weight.dim() < result.dim() or weight.shape[0] == 1

    # What rules use.

    def is_whole(self, tensor: Any) -> bool:
        """Whether the first dimension can be examples."""
        return (
            isinstance(tensor, Tensor)
            and self._tag(tensor) == _BATCHED
            and tensor.dim() > 0
            and tensor.shape[0] % self.num_examples == 0
            and tensor.numel() > 0
        )

    def weight(self, tensor: Any, *forms: str) -> Weight | None:
        """The tag, if this is a weight in one of the forms."""
        tag = self._tag(tensor) if isinstance(tensor, Tensor) else None
        return tag if isinstance(tag, Weight) and tag.form in forms else None

    def is_free(self, tensor: Any) -> bool:
        """Whether this has nothing to do with chosen weights."""
        return not isinstance(tensor, Tensor) or not isinstance(self._tag(tensor), Weight)

    def edge(self, output: Tensor) -> int:
        """Ask for the gradient at a place of the graph; its number."""
        if self._is_over:
            return 0
        self.edges.append(get_gradient_edge(output))
        self.sizes.append(output.numel())
        return len(self.edges) - 1

    def keep(self, use: Use) -> None:
        """Note a use."""
        if self._is_over:
            return
        self.uses.setdefault(use.block, []).append(use)

    def spread(self, weight: Weight, tensor: Tensor, copies: Tensor) -> None:
        """Note that `copies`, one for each example, were made of a weight, or of what was made from it."""
        leaf = self.leaves[weight.block]
        if weight.form == "looked up" and weight.tokens is not None:
            index = weight.tokens.reshape(-1, weight.tokens.shape[-1]).expand(self.num_examples, -1)
            self.keep(Lookup(weight.block, self.edge(copies), index, *leaf.shape))
        elif weight.form == "itself" and tensor.shape == leaf.shape:
            self.keep(Spread(weight.block, self.edge(copies), leaf))
        else:
            self.keep(Spread(weight.block, self.edge(copies), leaf, tensor))


_SPREADING = {"expand", "expand_as", "repeat", "broadcast_to", "repeat_interleave", "tile"}
_SAME = {"to", "type", "float", "half", "bfloat16", "double", "contiguous", "clone", "type_as", "dropout"}
_TRANSPOSING = {"t", "transpose", "permute", "swapaxes", "__get__", "adjoint"}


def _owners(module: nn.Module, away: Container[str]) -> dict[nn.Module, dict[str, str]]:
    """Layer -> the names under which it holds blocks that are away -> these blocks; tied ones have one name."""
    canonical = {id(weight): name for name, weight in module.named_parameters()}
    owners: dict[nn.Module, dict[str, str]] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and (block := canonical[id(weight)]) in away:
                owners.setdefault(part, {})[name] = block
    return owners


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
