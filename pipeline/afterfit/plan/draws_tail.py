"""What follows a method that leaves stored draws: outputs under each chunk of draws, and predictions from them all."""

from collections.abc import Iterator, Mapping
from typing import cast

from afterfit.errors import ConfigError
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration
from afterfit.plan.drawn import CollectDraws, CollectGaussian, DrawPredictions
from afterfit.plan.request import VARIATIONAL, DrawsMethod, FitRequest
from afterfit.predict.linearised import DrawFeatures
from afterfit.predict.sampled import SampledOutputs

CHUNK = "draws-"
"""Begins the names of the stages that hold draws; the number of the first one follows."""


def chunks_of(names: Mapping[str, object]) -> tuple[str, ...]:
    """Numbers of the first draws of all chunks, ascending, as the stages' names have them: "00000", "00016"."""
    return tuple(sorted((name.removeprefix(CHUNK) for name in names if name.startswith(CHUNK)), key=int))


def draws_tail(request: FitRequest, before: Mapping[str, Declaration]) -> Iterator[tuple[str, Declaration]]:
    """From draws to the predictions of every data set that is evaluated.

    Raises:
        ConfigError: if the scale is to be chosen by validation data that are not there.
    """
    chunks = chunks_of(before)
    if cast(DrawsMethod, request.method).scale == "validation":
        if "validation" not in request.data:
            raise ConfigError(
                "Choosing the scale by validation needs validation data; give `data.validation`, or set "
                "`method.scale` to a number."
            )
        yield f"features-validation-{chunks[0]}", _linearised("validation", chunks[0], before)
    for role in request.evaluated:
        for chunk in chunks:
            made = _linearised if request.by == "linearised" else _sampled
            yield f"features-{role}-{chunk}", made(role, chunk, before)
    yield "posterior", _collected(request.likelihood, chunks, before)
    for role in request.evaluated:
        recipe = DrawPredictions(role, request.likelihood, request.link, request.by, chunks)
        inputs = {f"features-{chunk}": f"features-{role}-{chunk}" for chunk in chunks}
        yield f"predictions-{role}", Declaration(recipe=recipe, inputs={**inputs, "posterior": "posterior"})


def _collected(likelihood: Likelihood, chunks: tuple[str, ...], before: Mapping[str, Declaration]) -> Declaration:
    if VARIATIONAL in before:
        return Declaration(
            recipe=CollectGaussian(likelihood, chunks), inputs={"fitted": VARIATIONAL, **_chunks(chunks)}
        )
    certificates = {f"certificate-{chunk}": f"certificate-{chunk}" for chunk in chunks}
    inputs = {**_chunks(chunks), **certificates, "scale": "scale"}
    return Declaration(recipe=CollectDraws(likelihood, chunks), inputs=inputs)


def _chunks(chunks: tuple[str, ...]) -> dict[str, str]:
    return {f"{CHUNK}{chunk}": f"{CHUNK}{chunk}" for chunk in chunks}


def _linearised(role: str, chunk: str, before: Mapping[str, Declaration]) -> Declaration:
    inputs = {"draws": f"{CHUNK}{chunk}", **_centre(before)}
    return Declaration(recipe=DrawFeatures(role, with_kernel=False), inputs=inputs, data=(role,))


def _sampled(role: str, chunk: str, before: Mapping[str, Declaration]) -> Declaration:
    scale = VARIATIONAL if VARIATIONAL in before else "scale"
    inputs = {"draws": f"{CHUNK}{chunk}", "scale": scale, **_centre(before)}
    return Declaration(recipe=SampledOutputs(role), inputs=inputs, data=(role,))


def _centre(before: Mapping[str, Declaration]) -> dict[str, str]:
    """Whose weights the network has, where they are not the point estimate's."""
    return {"network": VARIATIONAL} if VARIATIONAL in before else {}
