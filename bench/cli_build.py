"""The command that trains the embedded world from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli_options import Device, err
from bench.errors import unknown


def build(
    suite: Annotated[str, typer.Argument(help="The suite whose weights to make; only minicanvas is made from nothing.")] = "minicanvas",
    part: Annotated[
        str, typer.Option(help="Comma-separated: autoencoder, judges, diffusion, check, artifacts.")
    ] = "autoencoder,judges,diffusion,check,artifacts",
    budget: Annotated[str, typer.Option(help="small (about 85 minutes on 2 cores) or full (for a GPU).")] = "small",
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Checkpoints and weights go here.")] = Path("minicanvas-build"),
) -> None:
    """Train minicanvas' networks from nothing. The same command again continues."""
    if suite != "minicanvas":
        raise unknown("suite to build", suite, ["minicanvas"])
    from bench.diffusion.numerics import pick_device
    from bench.suites.minicanvas.build import build as make

    place = make(folder, tuple(part.split(",")), budget, pick_device(device), lambda text: err.print(text, highlight=False))
    err.print(f"Weights: {place}")
