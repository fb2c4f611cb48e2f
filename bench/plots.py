"""Figures for papers from records alone: scores with intervals, the trade-off, concepts, attacks; vectors, in an article's fonts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.files import write_atomic
from bench.leaderboard.captions import TITLES
from bench.leaderboard.table import KINDS, Cell, Leaderboard, Row
from bench.metrics.unlearning import NONE

Format = Literal["pdf", "svg"]
WIDTH = 6.5
"""Inches, a page's text."""
STYLE = {
    "font.family": "serif", "font.serif": ["DejaVu Serif"], "font.size": 8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "bench",
}  # fmt: skip
MARKERS = "os^vDP<>*pX"
COLOURS = [f"C{k}" for k in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
"""Grey is for controls."""
LONG = 24
"""Characters of a label from which panels stand above each other."""


def draw_all(leaderboard: Leaderboard, folder: Path, kind: Format) -> list[Path]:
    """Write every figure that the leaderboard has numbers for. The same leaderboard gives the same bytes. BenchError for none."""
    figures: dict[str, Callable[[Leaderboard], Figure | None]] = {
        "scores": scores, "tradeoff": tradeoff, "concepts": concepts, "attacks": attacks,
    }  # fmt: skip
    written = []
    with rc_context(STYLE):
        for name, draw in figures.items():
            figure = draw(leaderboard)
            if figure is not None:
                buffer = io.BytesIO()
                metadata = {"CreationDate": None} if kind == "pdf" else {"Date": None}
                figure.savefig(buffer, format=kind, bbox_inches="tight", metadata=metadata)
                written.append(folder / f"{name}.{kind}")
                write_atomic(written[-1], buffer.getvalue())
    if not written:
        raise BenchError("There is no row with pictures: run a method first.")
    return written


def scores(leaderboard: Leaderboard) -> Figure | None:
    """Every row's score with its interval, best on top; hollow what is not ranked."""
    kinds = [kind for kind in ("style", "object") if _rows(leaderboard, kind, "score")]
    if not kinds:
        return None
    most = max(len(_rows(leaderboard, kind, "score")) for kind in kinds)
    figure, axes = _stacked(leaderboard, len(kinds), 0.6 + 0.17 * most)
    for axis, kind in zip(axes, kinds, strict=True):
        rows = _rows(leaderboard, kind, "score")
        for place, row in enumerate(reversed(rows)):
            cell = row.cells[kind, "score"]
            value, low, high = _percent(cell)
            ranked = kind in row.ranks
            axis.plot([low, high], [place, place], color="C0" if ranked else "0.6", lw=1.4)
            axis.plot([value], [place], "o", ms=4, color="C0" if ranked else "0.6", mfc=None if ranked else "white")
        axis.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        axis.set(title=TITLES[kind], xlabel="Score (%), 95 % interval", xlim=(-2, 102))
    return figure


def tradeoff(leaderboard: Leaderboard) -> Figure | None:
    """UA against the mean of IRA and CRA, with intervals (of a mean the mean of two, as it has no wider one) and the ranked rows' front."""
    kinds = [kind for kind in KINDS if _rows(leaderboard, kind, "ua")]
    if not kinds:
        return None
    figure, axes = _axes(len(kinds), 3.0)
    names = list(dict.fromkeys(_bare(row) for row in leaderboard.rows if row.method != NONE))
    for axis, kind in zip(axes, kinds, strict=True):
        front = []
        for row in _rows(leaderboard, kind, "ua"):
            (ua, low, high), look = _percent(row.cells[kind, "ua"]), _look(row, names)
            kept = [cell for name in ("ira", "cra") if (cell := row.cells.get((kind, name))) is not None and cell.value is not None]
            if kept:
                x, left, right = np.mean([_percent(cell) for cell in kept], axis=0)
                axis.plot([x, x], [low, high], lw=0.8, alpha=0.6, color=look["color"])
                axis.plot([left, right], [ua, ua], lw=0.8, alpha=0.6, color=look["color"])
                axis.plot([x], [ua], ms=5, label=row.label, ls="none", **look)
                front += [(x, ua)] if kind in row.ranks else []
        axis.set(title=TITLES[kind], xlabel="Retained: mean of IRA and CRA (%)", ylabel="UA (%)", ylim=(-3, 103))
        least, best = axis.get_xlim()[0], _front(front)
        if len(best):  # from the left edge to the bottom, so that one row that beats all others has a front too
            corners = [(least, best[0, 1]), *best, (best[-1, 0], -3)]
            axis.step(*np.array(corners).T, where="pre", color="0.6", lw=0.8, ls=":", zorder=0)
            axis.set_xlim(left=least)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(4, 110 // (6 + max(map(len, handles), default=0))))
    figure.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncol=columns, fontsize=7)
    return figure


def _front(points: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """[k, 2], from left to right, those that no other reaches in both."""
    best = [(x, y) for x, y in set(points) if not any(u >= x and v >= y and (u, v) != (x, y) for u, v in points)]
    return np.array(sorted(best)).reshape(-1, 2)


def _bare(row: Row) -> str:
    return row.label.removesuffix(" (untuned)")


def _look(row: Row, names: Sequence[str]) -> dict[str, Any]:
    """A method, or variant of one, has its colour and sign, hollow without its tuning; none is a black cross, controls are grey."""
    if row.method == NONE:
        return {"color": "black", "marker": "x"}
    place = names.index(_bare(row))
    look = {"color": "0.5" if row.control else COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
    return look | ({"markerfacecolor": "none"} if row.label != _bare(row) else {})


def concepts(leaderboard: Leaderboard) -> Figure | None:
    """UA of every method on every concept."""
    table = leaderboard.targets[leaderboard.targets["method"] != NONE]
    kinds = [kind for kind in KINDS if (table["kind"] == kind).any()]
    if not kinds:
        return None
    rows = max(table.loc[table["kind"] == kind, "method"].nunique() for kind in kinds)
    figure, axes = _stacked(leaderboard, len(kinds), 0.9 + 0.17 * rows)
    for axis, kind in zip(axes, kinds, strict=True):
        grid = table[table["kind"] == kind].pivot_table(index="method", columns="target", values="ua")
        image = axis.imshow(100 * grid.to_numpy(), vmin=0, vmax=100, aspect="auto", cmap="viridis")
        axis.set_xticks(range(grid.shape[1]), [name.split(":", 1)[1] for name in grid.columns], rotation=60, ha="right")
        axis.set_yticks(range(grid.shape[0]), grid.index)
        axis.set_title(TITLES[kind])
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, label="UA (%)", shrink=0.8)
    return figure


def attacks(leaderboard: Leaderboard) -> Figure | None:
    """Success of attacks by the pictures that were judged, a panel per method."""
    table = leaderboard.attack_curves
    if table.empty:
        return None
    methods = sorted(table["method"].unique())
    figure, axes = _axes(min(3, len(methods)), 1.9 * -(-len(methods) // 3), -(-len(methods) // 3))
    table = table[table["budget"] == "judged"]
    names, most = sorted(table["attack"].unique()), table["spent"].max()
    for axis, method in zip(axes, methods, strict=False):
        for (name, kind), own in table[table["method"] == method].groupby(["attack", "kind"]):
            place, style = names.index(name), "-" if kind == "style" else "--"
            width = 1 + 2.5 * (1 - (place + 1) / len(names))  # of equal curves the later is seen inside the earlier
            judged, success = [*own["spent"], most], [*own["success"], own["success"].iloc[-1]]
            axis.plot(judged, 100 * np.array(success), style, color=f"C{place % 10}", label=f"{name}, {kind}s", lw=width)
        axis.set(title=method, ylim=(-3, 103), xlabel="pictures judged", ylabel="back (%)")
    for axis in axes[len(methods) :]:
        axis.set_visible(False)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncol=3, fontsize=7)
    return figure


def _stacked(leaderboard: Leaderboard, panels: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Panels that rows stand beside: next to each other, or where labels are long one above the other."""
    long = max(len(row.label) for row in leaderboard.rows) > LONG
    return _axes(1, height * panels, panels) if long else _axes(panels, height)


def _axes(columns: int, height: float, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _percent(cell: Cell) -> tuple[float, float, float]:
    """Value and interval, of no width where there is none."""
    value = cell.value or 0.0
    return 100 * value, 100 * (value if cell.low is None else cell.low), 100 * (value if cell.high is None else cell.high)


def _rows(leaderboard: Leaderboard, kind: str, key: str) -> list[Row]:
    """From top to bottom, those with a value."""
    if kind not in leaderboard.tables():
        return []
    every = [row for group in leaderboard.groups(kind)[1:] + leaderboard.groups(kind)[:1] for row in group]
    return [row for row in every if (cell := row.cells.get((kind, key))) is not None and cell.value is not None]
