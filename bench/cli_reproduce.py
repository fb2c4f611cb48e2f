"""The command that runs a published row's settings and holds the result against its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bench import cli_run, registry
from bench.assets import locate
from bench.cli_options import AnchorPrompts, AssetFiles, AssetFolder, AutoBatchSize, Device, DType, err, out
from bench.errors import BenchError, unknown
from bench.published import PUBLISHED, read_published

METRICS = ("ua", "ira", "cra")
FID = "fid_unlearncanvas"


def reproduce(
    row: Annotated[str | None, typer.Argument(help="Id of a published row. Without one, all are listed.", show_default=False)] = None,
    preset: Annotated[str, typer.Option(help="full is the published amount; of less, differences say less.")] = "full",
    concepts: cli_run.Concepts = None, seeds: cli_run.Seeds = None, device: Device = "auto", dtype: DType = "auto",
    folder: Annotated[Path | None, typer.Option("--out", help="The run's folder. Default: results/runs/reproduce-ROW-PRESET.")] = None,
    published: Annotated[Path, typer.Option(help="Folder of published figures.")] = PUBLISHED,
    batch_size: AutoBatchSize = None, engine: cli_run.EngineChoice = "local", workers: cli_run.Workers = None,
    yes: Annotated[bool, typer.Option("--yes", help="Begin also what is expected to take longer than half a day.")] = False,
    assets: AssetFolder = None, files: AssetFiles = None, anchor_prompts: AnchorPrompts = None,
) -> None:  # fmt: skip
    """Run a published row's settings and compare: published figure, measured one with its interval, whether they agree.

    They agree where the difference is within the tolerance that the file states (points), by one source at least where sources
    conflict. Exit status 1 where they do not. Initial noise is never the published one: public scripts draw it in one stream that
    the order of prompts decides.

    Examples: `python -m bench reproduce` · `python -m bench reproduce saeuron-styles --preset quick`
    """
    body = read_published(published)
    rows = [entry for entry in body["rows"] if entry["id"] == row]
    if row is None:
        _list(body["rows"])
        return
    if not rows:
        raise unknown("published row", row, {entry["id"] for entry in body["rows"]})
    settings = next((entry["settings"] for entry in rows if entry.get("settings")), None)
    if settings is None:
        raise BenchError(f"{row} cannot be run: this project has no such method, or it is not public with which parameters it was made.")
    for name in settings.get("assets", ()):
        locate(registry.suite(settings["suite"]).files[name])
        own = registry.suite(settings["suite"]).tuned_folder
        if own is not None and (own / f"{settings['methods'].partition(':')[0]}.toml").is_file():
            raise BenchError(f"{own} holds parameters of your own tuning, not the published ones: move them away.")
    place = folder or Path("results") / "runs" / f"reproduce-{row}-{preset}"
    default = settings["concepts"] if preset == "full" or concepts else _quick(settings, preset)
    cli_run.run(
        suite=settings["suite"], methods=settings["methods"], concepts=concepts or default, preset=preset, seeds=seeds, device=device,
        dtype=dtype, tuning=settings.get("tuning", "untuned"), folder=place, yes=yes, batch_size=batch_size,
        engine=engine, workers=workers, scheduler=settings.get("scheduler"),
    )  # fmt: skip
    if not _compare(rows, place, float(body["tolerance_points"])):
        raise typer.Exit(1)


def _quick(settings: dict[str, Any], preset: str) -> str:
    """The preset's concepts of the row's kind."""
    found = registry.suite(settings["suite"]).presets
    if preset not in found:
        raise unknown("preset", preset, found)
    kind = settings["concepts"].removesuffix("s")
    chosen = ",".join(name for name in found[preset].concepts if name.startswith(kind))
    if not chosen:
        raise BenchError(f"The preset {preset} has no {settings['concepts']}: take another, or name --concepts.")
    return chosen


def _list(rows: list[dict[str, Any]]) -> None:
    table = Table("row", "UA", "IRA", "CRA", "protocol", "can be run", "doubt")
    for entry in rows:
        figures = ["" if entry[name] is None else f"{entry[name]:.2f}" for name in METRICS]
        table.add_row(entry["id"], *figures, entry["protocol"], "yes" if entry.get("settings") else "", entry.get("doubt", ""))
    out.print(table)


def _compare(rows: list[dict[str, Any]], place: Path, tolerance: float) -> bool:
    """Print published beside measured; whether one source agrees in all that it states."""
    import pandas as pd

    values = pd.read_csv(place / "leaderboard.csv") if (place / "leaderboard.csv").is_file() else None
    if values is None:
        err.print("There is no table to compare yet: the same command continues.", highlight=False)
        return False
    own = values[(values["method"] != "none") & (values["table"] == rows[0]["concepts"].removesuffix("s"))].set_index("column")
    table = Table("source", "figure", "published", "measured", "difference", f"within {tolerance:g} points")
    agreeing = False
    for entry in rows:
        within = []
        for name in METRICS:
            cell = own.loc[name]
            if entry[name] is None or pd.isna(cell["value"]):
                continue
            measured, low, high = (100 * cell[key] for key in ("value", "low", "high"))
            within.append(abs(measured - entry[name]) <= tolerance)
            interval = f"{measured:.2f} [{low:.2f}, {high:.2f}]"
            difference = f"{measured - entry[name]:+.2f}"
            table.add_row(entry["source"], name.upper(), f"{entry[name]:.2f}", interval, difference, "yes" if within[-1] else "no")
        if entry.get("fid") is not None and FID in own.index and not pd.isna(own.loc[FID]["value"]):
            table.add_row(entry["source"], "FID", f"{entry['fid']:.2f}", f"{own.loc[FID]['value']:.2f}", "", "not judged")
        agreeing |= bool(within) and all(within)
    out.print(table)
    for entry in rows:
        if entry.get("doubt"):
            out.print(f"{entry['source']}: {entry['doubt']}", markup=False, highlight=False, soft_wrap=True)
    return agreeing
