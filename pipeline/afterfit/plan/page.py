"""The HTML report of a run, written beside its artifacts where the store is a folder."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from afterfit.plan.run import Outcome, Prepared
from afterfit.store.files import trouble

NAME = "report.html"
POSTERIOR_FACTS = (
    "prior_precision",
    "temperature",
    "data_fraction",
    "complement",
    "num_features",
    "noise_variance",
    "log_evidence_nats",
    "elbo",
    "sparsity",
    "compression",
    "divergence",
    "log_det_precision",
    "entropy",
    "scale",
    "rule",
    "num_draws",
    "solver",
    "residual",
    "isotropic",
    "rank",
    "rank_is_bound",
    "cut_off",
    "largest_loss_change",
    "relative_length",
)


def write_page(prepared: Prepared, outcome: Outcome) -> Path | None:
    """The report's path; None where there are no scores, or the store is no folder.

    A report that is there is replaced only by a run that did something.
    """
    if outcome.scores is None or "://" in outcome.store.uri:
        return None
    path = Path(outcome.store.uri) / NAME
    if outcome.did_nothing and path.exists():
        return path
    from afterfit.report.page import render

    hidden = path.with_name(f".{NAME}.{os.getpid()}")
    with trouble(outcome.store.uri, "written"):
        hidden.write_text(render(_content(prepared, outcome)), encoding="utf-8")
        hidden.replace(path)
    return path


def _content(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    content: dict[str, Any] = {
        "title": f"{prepared.config.name}: {prepared.request.method.name}",
        "facts": _facts(prepared, outcome),
        "scores": outcome.scores,
        "stages": outcome.stages,
    }
    scores = outcome.ran["scores"].artifact
    if "confidence" in scores.tables:
        content["confidence"] = scores.table("confidence")
    if "reliability" in scores.tables:
        first = prepared.request.in_distribution[:1]
        table = scores.table("reliability")
        mask = pa.array([dataset in first for dataset in table["dataset"].to_pylist()])
        content["reliability"] = table.filter(mask).drop_columns(["dataset"])
    found = {"spectrum": _spectrum(outcome), "bound": _bound(outcome)}
    return content | {name: table for name, table in found.items() if table is not None}


def _facts(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    request = prepared.request
    posterior = outcome.ran["posterior"].artifact.facts
    return {
        "weights": request.layout.num_weights,
        "outputs": request.num_outputs,
        "examples": {role: source.num_examples for role, source in request.data.items()},
        "likelihood": request.likelihood.name,
        "link": request.link,
        **({"predicted_by": request.by} if request.method.posterior == "draws" else {}),
        **{name: posterior[name] for name in POSTERIOR_FACTS if name in posterior},
        **({"notes": " ".join(outcome.notes)} if outcome.notes else {}),
    }


def _spectrum(outcome: Outcome) -> pa.Table | None:
    """Eigenvalues of the first stage that kept some, largest first."""
    for ran in outcome.ran.values():
        if "eigenvalues" in ran.artifact.families:
            values = sorted(ran.artifact.tensor("eigenvalues").tolist(), reverse=True)
            kept = [value for value in values if value > 0]
            return pa.table({"index": list(range(1, len(kept) + 1)), "eigenvalue": kept})
    return None


def _bound(outcome: Outcome) -> pa.Table | None:
    """The evidence lower bound by step, of the first stage that told it."""
    for ran in outcome.ran.values():
        if "progress" in ran.artifact.tables:
            table = ran.artifact.table("progress")
            if "elbo" in table.column_names:
                return table.select(["step", "elbo"]).drop_null()
    return None
