"""What the commands share: consoles and options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bench import registry
from bench.config import CompileChoice, DTypeName

if TYPE_CHECKING:
    import pandas as pd

    from bench.leaderboard.table import Leaderboard

out, err = Console(emoji=False), Console(stderr=True, emoji=False)  # "style:sunset" is no emoji
BATCH_SIZE = 16

SuiteName = Annotated[str, typer.Option("--suite", help="Protocol; `list suites` names them.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
DType = Annotated[DTypeName, typer.Option(help="auto measures and takes bfloat16 only where it is faster.")]
Compile = Annotated[CompileChoice, typer.Option("--compile", help="auto compiles the UNet where that pays within this run.")]
AutoBatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=2,
        max=4_096,
        help="Pictures (two conditions each) in one UNet call; twice as many goals are attacked at once. Default: as many as pay.",
    ),
]


def _use_folder(value: Path | None) -> Path | None:
    from bench import assets

    if value is not None:
        assets.use(value, {})
    return value


def _use_files(value: list[str] | None) -> list[str] | None:
    from bench import assets

    if value:
        known = {name: asset for suite in registry.SUITES for name, asset in registry.suite(suite).files.items()}
        assets.use(None, assets.parse_files(value, known))
    return value


def _use_anchors(value: Path | None) -> Path | None:
    if value is not None:
        _use_files([f"anchor-prompts={value}"])
    return value


AnchorPrompts = Annotated[
    Path | None,
    typer.Option(help="Folder of the published sd_prompt_OBJECT.txt; the same as --asset anchor-prompts=PATH.", callback=_use_anchors),
]
AssetFolder = Annotated[
    Path | None,
    typer.Option("--assets", help="Folder of published files. Default: BENCH_ASSETS, or ~/.cache/unlearnbench.", callback=_use_folder),
]
AssetFiles = Annotated[
    list[str] | None,
    typer.Option("--asset", help="NAME=PATH of a published file elsewhere, repeatable; `assets list` names them.", callback=_use_files),
]
BatchSize = Annotated[int, typer.Option(min=2, max=4_096, help="Pictures (two conditions each) in one UNet call.")]


def show_frame(frame: pd.DataFrame, title: str) -> None:
    """Print a table, shares and distances with three digits."""
    table = Table(
        *(name.replace("_", " ") for name in frame.columns), title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True
    )
    for place, column in enumerate(table.columns):
        column.no_wrap, column.overflow = place == 0, "fold"
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    out.print(table)


def show_leaderboard(leaderboard: Leaderboard) -> None:
    """Print its tables, with fewer columns where the terminal is narrow."""
    from bench.leaderboard.export import terminal

    for table in terminal(leaderboard, brief=out.width < 160):
        out.print(table)


Examine = Annotated[
    str | None,
    typer.Option(
        help="Also find out about each picture: clip-score; qwen2-vl, whether it is broken, or path/to/judge.py:function, a judge of your"
        " own. Comma-separated. Asked of a run later, all is sampled again."
    ),
]


def examiner_names(text: str | None) -> tuple[str, ...]:
    """Of `--examine`: names; files by their whole path, as other processes may work elsewhere."""
    names = filter(None, (text or "").split(","))
    return tuple(str(Path(name).absolute()) if ".py:" in name else name for name in names)
