"""Null-space posterior: draws that leave what the network says about its training data as it is, to first order."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from afterfit.errors import ConfigError
from afterfit.frozen import Frozen, Positive
from afterfit.methods.ggn_nystrom import leading_ggn
from afterfit.methods.projection.alternating import AlternatingProjection
from afterfit.methods.projection.certificate import Certificate
from afterfit.methods.projection.choice import chosen, told
from afterfit.methods.projection.chunk import chunked
from afterfit.methods.projection.complement import ComplementDraws
from afterfit.methods.projection.counts import Choice
from afterfit.methods.projection.dual import DualProjection
from afterfit.methods.projection.gram import GramFactor, ProtectedGram
from afterfit.methods.projection.image import BasisImage
from afterfit.methods.projection.lengths import RowLengths
from afterfit.methods.projection.problem import Problem, draws_together
from afterfit.methods.projection.protected import Protected
from afterfit.methods.projection.scale import Rule, Scale
from afterfit.methods.projection.sweeps import BlockFactors
from afterfit.network.likelihoods import Likelihood
from afterfit.network.loading import imported
from afterfit.network.workbench import Declaration, Outline, Recipe


class NullSpace(Frozen):
    """Draws from N(theta, scale^2 Pi), Pi projecting on the kernel of the training Jacobian, with a certificate.

    Source: Miani, Roy, Hauberg (2024), arXiv:2410.16901.
    """

    name: Literal["null_space"] = "null_space"
    posterior: ClassVar[Literal["draws"]] = "draws"
    narrower: ClassVar[str] = "lower `method.scale`, or let it be chosen by validation"
    kernel: Literal["predictive", "loss", "per_layer", "global_basis"] = "predictive"
    """`predictive` keeps every output of the protected examples; `loss` their losses only, with one row an example;
    `per_layer` keeps every output in each layer alone, a subset of `predictive`; `global_basis` only keeps away from
    the leading eigenvectors of the GGN."""
    solver: Literal["auto", "exact", "cg", "alternating"] = "auto"
    """`exact` factors the Gram of all rows; `cg` needs two passes over the data a step; `alternating` one a sweep.
    `auto` takes the one of least counted cost that is expected to reach the tolerance."""
    preconditioner: Literal["auto", "none", "nystrom", "sweep", "cholesky"] = "auto"
    """Of `cg`, which naming one asks for: the global basis, a sweep of block projections, or a factor of the Gram in
    float32."""
    num_draws: int = Field(32, gt=0)
    """S: draws that are stored."""
    more_draws: tuple[int, ...] = ()
    """Numbers that the draws were raised to later, by `afterfit extend --more-draws`; none is made again."""
    num_protected: int | None = Field(None, gt=0)
    """Training examples that are protected, chosen at random; all by default. What is not protected may move."""
    scale: Rule | Positive = "loss_change"
    """Standard deviation along a draw of about sqrt(P) length: a number, or what chooses it: `loss_change` in the plain
    network, `validation` NLL, or the linearised `evidence`, which is far too wide for the plain network."""
    loss_change: Positive = 0.1
    """Nats that the plain network may change a protected example's loss by, for the rule of that name."""
    loss: str | None = None
    """`package.module:function` of a loss for each example, in place of the likelihood's; called with outputs (B, C),
    inputs and targets, it returns (B,)."""
    global_basis: int | None = Field(None, gt=0)
    """k: leading eigenvectors of the GGN, for the kernel of that name and for the preconditioner `nystrom`."""
    tolerance: Positive = 1e-4
    """Of an iterative solver: |J_i d| / (|J_i| |d|) of the worst row and draw."""
    max_passes: int = Field(200, gt=0)
    """Over the protected examples, for each run of draws that is projected together."""
    block_size: int = Field(50, gt=0)
    """Examples of a block projection."""
    draws_at_once: int | Literal["auto"] = "auto"
    """Draws that are projected together; `auto` is what memory holds, at most 64."""
    seed: int = 0
    """Names the noise and the choice of examples."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Protected examples are training examples, and choices must fit each other.

        Raises:
            ConfigError: with the remedy.
        """
        if self.num_protected is not None and self.num_protected > num_examples:
            raise ConfigError(
                f"`num_protected` is {self.num_protected}, but there are {num_examples} training examples; lower it, "
                "or leave it out to protect all."
            )
        if self.loss is not None:
            if self.kernel != "loss":
                raise ConfigError(f"A `loss` has no part in the kernel {self.kernel!r}; set `method.kernel: loss`.")
            imported(self.loss)
        if self.global_basis is None and self.preconditioner == "nystrom":
            raise ConfigError("The preconditioner `nystrom` needs a basis; set `method.global_basis` to its rank.")
        if self.kernel == "global_basis":
            if self.global_basis is None:
                raise ConfigError("The kernel `global_basis` needs its rank; set `method.global_basis`, say to 100.")
            if (self.solver, self.preconditioner) != ("auto", "auto"):
                raise ConfigError(
                    "The kernel `global_basis` has nothing to solve; leave out `method.solver` and "
                    "`method.preconditioner`."
                )

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """Factors, draws by chunks with their certificates, and the scale."""
        protected = self._protected(likelihood)
        choice = self._choice(protected, outline)
        declared = {"lengths": Declaration(recipe=RowLengths(protected), data=("train",))}
        declared |= self._factors(protected, choice, likelihood, outline)
        read = _read(choice)
        for chunk in self._chunks(outline):
            draws = f"draws-{chunk.start:05d}"
            declared[draws] = Declaration(
                recipe=self._draws(protected, choice, chunk),
                inputs={name: name for name in read},
                data=() if choice is None else ("train",),
            )
            declared[f"certificate-{chunk.start:05d}"] = Declaration(
                recipe=Certificate(protected=protected, first=chunk.start, num=len(chunk), seed=self.seed),
                inputs={"lengths": "lengths", "draws": draws},
                data=("train",),
            )
        seen = {"validation": "features-validation-00000"} if self.scale == "validation" else {}
        declared["scale"] = Declaration(
            recipe=Scale(protected, self.scale, self.loss_change),
            inputs={"draws": "draws-00000", **seen},
            data=("train",),
        )
        return declared

    def _protected(self, likelihood: Likelihood) -> Protected:
        kernel = "predictive" if self.kernel == "global_basis" else self.kernel
        return Protected(kernel, likelihood, self.loss, self.num_protected, self.seed)

    def _choice(self, protected: Protected, outline: Outline) -> Choice | None:
        """None where there is nothing to solve."""
        if self.kernel == "global_basis":
            return None
        return chosen(self._problem(protected, outline), self.solver, self.preconditioner)

    def _problem(self, protected: Protected, outline: Outline) -> Problem:
        return Problem(
            outline=outline,
            protected=protected,
            num_draws=self.num_draws,
            draws_at_once=self.draws_at_once,
            tolerance=self.tolerance,
            max_passes=self.max_passes,
            block_size=self.block_size,
            global_basis=self.global_basis,
        )

    def sentence(self, likelihood: Likelihood, outline: Outline) -> str:
        """Under a plan: the solver that projects, what it is expected to reach, and what the others would take."""
        protected = self._protected(likelihood)
        choice = self._choice(protected, outline)
        if choice is None:
            return ""
        return told(self._problem(protected, outline), (self.solver, self.preconditioner), choice)

    def _factors(
        self, protected: Protected, choice: Choice | None, likelihood: Likelihood, outline: Outline
    ) -> dict[str, Declaration]:
        """What the draws need beside the lengths of rows."""
        declared: dict[str, Declaration] = {}
        if choice is None or choice.preconditioner == "nystrom":
            assert self.global_basis is not None
            declared |= leading_ggn(likelihood, self.global_basis, self.seed, outline)
        if choice is None:
            return declared
        if choice.preconditioner == "nystrom":
            inputs = {"lengths": "lengths", "basis": "basis"}
            declared["image"] = Declaration(recipe=BasisImage(protected), inputs=inputs, data=("train",))
        if choice.has_blocks:
            recipe = BlockFactors(protected, self.block_size)
            declared["blocks"] = Declaration(recipe=recipe, inputs={"lengths": "lengths"}, data=("train",))
        if choice.has_gram:
            is_exact = choice.solver == "exact"
            gram = ProtectedGram(protected, is_exact)
            declared["gram"] = Declaration(recipe=gram, inputs={"lengths": "lengths"}, data=("train",))
            declared["factor"] = Declaration(recipe=GramFactor(is_exact), inputs={"gram": "gram"})
        return declared

    def _chunks(self, outline: Outline) -> Sequence[range]:
        """Draws that are projected together."""
        return chunked(self.num_draws, self.more_draws, draws_together(outline, self.draws_at_once))

    def _draws(self, protected: Protected, choice: Choice | None, chunk: range) -> Recipe:
        named = {"first": chunk.start, "num": len(chunk), "seed": self.seed}
        if choice is None:
            return ComplementDraws(**named)
        limits = {"tolerance": self.tolerance, "max_passes": self.max_passes, "block_size": self.block_size}
        if choice.solver == "alternating":
            return AlternatingProjection(protected, **named, **limits)
        return DualProjection(protected, solver=choice.solver, preconditioner=choice.preconditioner, **named, **limits)


def _read(choice: Choice | None) -> Sequence[str]:
    """Stages that draws read."""
    if choice is None:
        return ("basis",)
    of_solver = {"exact": ("factor", "gram"), "alternating": ("blocks",), "cg": ()}
    of_preconditioner = {"none": (), "nystrom": ("image",), "sweep": ("blocks",), "cholesky": ("factor",)}
    return ("lengths", *of_solver[choice.solver], *of_preconditioner[choice.preconditioner])
