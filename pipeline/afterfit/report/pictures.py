"""The pictures of the report, each a pure function from plain tables to the text of an SVG image.

Colours are of Okabe and Ito's palette, told apart by the colour-blind; what colour says, a line style or a
label says too. The same tables give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from afterfit.report.metrics import lines, predictor_title, predictors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final[Sequence[str]] = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)  # predictors
DATA_COLOURS: Final[Sequence[str]] = ("#222222", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: Final[Sequence[str]] = ("-", "--", ":", "-.")
MARKERS: Final[Sequence[str]] = ("s", "o", "^", "D", "v", "P")
INK, MUTED = "#222222", "#767676"

STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.constrained_layout.hspace": 0.08,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.05,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: no search for fonts, no warning
    "font.size": 9.0,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "afterfit",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def reliability(table: pa.Table) -> str:
    """Accuracy against confidence for each predictor, over the share of examples in each bin.

    Args:
        table: columns predictor, bin_low, bin_high, confidence, accuracy, count.
    """
    rows = table.to_pylist()
    with _style():
        figure = _figure(5.2, 6.6)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="perfect")
        for number, name in enumerate(predictors(table)):
            mine = [row for row in rows if row["predictor"] == name]
            filled = [row for row in mine if row["count"]]
            look = _look(COLOURS, number)
            marker = MARKERS[number % len(MARKERS)]
            points = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
            most = max((row["count"] for row in filled), default=1)
            # The area says how many examples a point stands for: bins with a handful scatter by chance.
            areas = [8 + 52 * row["count"] / most for row in filled]
            above.plot(*points, linewidth=0.9, alpha=0.6, **look)
            above.scatter(*points, areas, color=look["color"], marker=marker, clip_on=False, zorder=3)
            above.plot([], [], marker=marker, label=predictor_title(name), **look)
            _histogram(below, mine, look)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy of the bin")
        _legend(above)
        below.set(xlabel="confidence (largest probability)", ylabel="examples (%)")
        return _svg(figure)


def confidence(table: pa.Table) -> str:
    """Histograms of the largest probability, one panel a predictor, one line a data set.

    Args:
        table: columns predictor, dataset, bin_low, bin_high, count.
    """
    rows = table.to_pylist()
    names = predictors(table)
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    with _style():
        figure = _figure(3.6 * len(names) + 0.4, 3.2)
        panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            for number, dataset in enumerate(datasets):
                mine = [row for row in rows if row["predictor"] == name and row["dataset"] == dataset]
                if mine:
                    _histogram(panel, mine, _look(DATA_COLOURS, number), label=dataset, fill=True)
            panel.set(xlim=(0, 1), xlabel="largest probability")
            panel.text(0.03, 0.93, predictor_title(name), transform=panel.transAxes, weight="bold")
        panels[0].set_ylabel("examples (%)")
        panels[0].set_ylim(bottom=0)
        _legend(panels[0])
        return _svg(figure)


def spectrum(table: pa.Table) -> str:
    """Eigenvalues on a logarithmic scale, in the order of their index.

    Args:
        table: columns index, eigenvalue; those that are not positive have no place on the scale.
    """
    from matplotlib.ticker import MaxNLocator

    found = [(row["index"], row["eigenvalue"]) for row in table.to_pylist() if row["eigenvalue"] > 0]
    with _style():
        figure = _figure(5.2, 3.2)
        axes = figure.subplots()
        axes.plot(
            [index for index, _ in found],
            [value for _, value in found],
            color=COLOURS[1],
            marker="o" if len(found) <= 60 else "",
            markersize=3.5,
        )
        axes.set(yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure)


def bound(table: pa.Table) -> str:
    """The bound on the log evidence, step by step, with its last value.

    Args:
        table: columns step, elbo; no others are read.
    """
    from matplotlib.ticker import MaxNLocator

    steps, values = table["step"].to_pylist(), table["elbo"].to_pylist()
    with _style():
        figure = _figure(5.2, 3.2)
        axes = figure.subplots()
        few = len(values) <= 60
        axes.plot(steps, values, color=COLOURS[1], marker="o" if few else "", markersize=3.5)
        if values:
            axes.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), (0, 6), textcoords="offset points", ha="right")
        axes.set(xlabel="step", ylabel="ELBO (nats per example)")
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure)


def bars(scores: pa.Table) -> str:
    """One small panel a score, one bar a predictor, each with its number.

    Args:
        scores: columns predictor, dataset, metric, value.
    """
    names = predictors(scores)
    found = lines(scores)
    with _style():
        columns = min(3, len(found))
        height = -(-len(found) // columns)
        figure = _figure(2.9 * columns, (0.7 + 0.25 * len(names)) * height)
        panels = figure.subplots(height, columns, squeeze=False).ravel()
        for panel, line in zip(panels, found, strict=False):
            shown = [name for name in names if name in line.values]
            drawn = panel.barh(
                [predictor_title(name) for name in shown],
                [line.values[name] for name in shown],
                color=[COLOURS[names.index(name) % len(COLOURS)] for name in shown],
                height=0.62,
            )
            panel.bar_label(drawn, [line.show(name) for name in shown], padding=3)
            panel.invert_yaxis()
            panel.margins(x=0.35)
            panel.grid(visible=False)
            panel.spines["bottom"].set_visible(False)
            panel.tick_params(axis="x", bottom=False, labelbottom=False)
            panel.tick_params(axis="y", left=False)
            panel.set_title(f"{line.metric.title}, {line.dataset}")
        for panel in panels[len(found) :]:
            panel.set_visible(False)
        return _svg(figure)


def _histogram(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    look: Mapping[str, Any],
    *,
    label: str | None = None,
    fill: bool = False,
) -> None:
    total = sum(row["count"] for row in rows) or 1
    edges = [rows[0]["bin_low"], *(row["bin_high"] for row in rows)]
    shares = [100 * row["count"] / total for row in rows]
    axes.stairs(shares, edges, label=label, linewidth=1.4, **look)
    if fill:
        axes.stairs(shares, edges, fill=True, color=look["color"], alpha=0.15)


def _look(colours: Sequence[str], number: int) -> dict[str, Any]:
    return {"color": colours[number % len(colours)], "linestyle": DASHES[number % len(DASHES)]}


def _legend(axes: Axes) -> None:
    """In one row above the axes, where no line can run through it."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.3)


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


def _figure(width: float, height: float) -> Figure:
    """A figure that belongs to nobody: no window, no global list of open figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _svg(figure: Figure) -> str:
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
