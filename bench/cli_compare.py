"""Commands that compare rows of a run with paired intervals: `compare`, `matched`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli_options import err, out, show_frame

if TYPE_CHECKING:
    import pandas as pd

Folder = Annotated[Path, typer.Argument(help="A run's folder, or what was published of one.")]


def compare(
    folder: Folder,
    first: Annotated[str, typer.Argument(help="A row, as the table labels it.")],
    second: Annotated[str, typer.Argument(help="Another.")],
) -> None:
    """Compare two rows of a run's table: UA, IRA, CRA and score, first minus second, with paired intervals; where, and how they were made.

    Intervals of two rows may overlap although one is surely better: both meet the same easy and hard pictures.

    Example: `python -m bench compare results/runs/minicanvas-quick saeuron "saeuron (untuned)"`
    """
    from bench.leaderboard import compare as leaderboard
    from bench.leaderboard.frames import seen_alike
    from bench.tables import rows_of

    records, rules = rows_of(folder)
    show_frame(_in_percent(leaderboard.compare(records, first, second, rules), first, second), f"{first} − {second} (%)")
    table = leaderboard.by_target(records, first, second, rules)
    sure = table[table["significant"]].drop(columns="significant")
    if len(sure):
        title = f"UA of concepts, each interval 95 % alone; {len(table) - len(sure)} more may not differ"
        show_frame(_in_percent(sure, first, second), title)
    ours, theirs = leaderboard.rows_named(records, (first, second))
    if seen_alike(ours, theirs):
        out.print("The judge saw the same in every picture of both.")
    for text in leaderboard.made_otherwise(ours, theirs):
        out.print(f"Made otherwise: {text}", highlight=False, soft_wrap=True)


def matched(
    folder: Folder,
    method: Annotated[str, typer.Option(help="A method with several variants in the run.")],
    by: Annotated[str, typer.Option(help="The parameter whose two values are compared; the others make each family's curve.")],
) -> None:
    """Compare two settings of a method at the same UA, with paired intervals: who erases less also damages less.

    The run needs variants of both settings at several strengths, such as
    `--methods saeuron:multiplier=-1,saeuron:multiplier=-5,saeuron:detection=saeuron-code:multiplier=-1`.

    Example: `python -m bench matched results/runs/minicanvas-quick --method saeuron --by detection`
    """
    from bench.tables import rows_of, write_matched

    records, rules = rows_of(folder)
    place, table = write_matched(records, rules, method, by, folder)
    first, second = table.columns[2:4]
    show_frame(_in_percent(table.rename(columns={first: "first", second: "second"}), first, second), f"{method}: {by}, at the same UA (%)")
    err.print(f"Table: {place}", highlight=False, soft_wrap=True)


def _in_percent(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Rows of `differences` or `at_matched_ua` as a person reads them: in percent, the difference with its interval in one cell."""
    import pandas as pd

    shown = pd.DataFrame({name: table[name] for name in ("target", "kind") if name in table}).iloc[:, :1]
    if "ua" in table:
        shown["UA ≥"] = [f"{100 * ua:.0f}" for ua in table["ua"]]
    shown["metric"] = [name if name == "score" else name.upper() for name in table["metric"]]
    for label, values in ((first, table["first"]), (second, table["second"])):
        shown[label] = [f"{100 * value:.1f}" for value in values]
    apart = zip(table["difference"], table["low"], table["high"], strict=True)
    shown["difference"] = [f"{round(100 * value, 1) + 0.0:+.1f} [{100 * low:.1f}, {100 * high:.1f}]" for value, low, high in apart]
    if "significant" in table:
        shown["sure"] = ["yes" if significant else "no" for significant in table["significant"]]
    return shown
