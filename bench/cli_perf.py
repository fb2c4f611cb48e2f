"""Commands that measure the harness itself: `perf`, `numerics`, `attack-loss`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from bench import registry
from bench.cli_options import Device, DType, SuiteName, err, out, show_frame
from bench.errors import unknown

Size = Literal["suite", "sd15"]


def perf(
    size: Annotated[Size, typer.Option(help="The suite's own model, or SD 1.5's architecture with random weights.")] = "suite",
    suite: SuiteName = "minicanvas",
    parts: Annotated[str | None, typer.Option(help="Of unet, harness, sharing, process, store, engines, attacks; others stay.")] = None,
    images: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures of a timed run.")] = 64,
    steps: Annotated[int | None, typer.Option(min=2, max=1000, help="Sampling steps. Default: 20, of sd15 100.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=1_000, help="Turns of each comparison.")] = 10,
    table: Annotated[int, typer.Option(min=1, max=100_000, help="Prompts of the two-method table whose UNet rows are counted.")] = 120,
    compiled: Annotated[bool, typer.Option("--compiled/--eager", help="Also compare both compiled.")] = True,
    device: Device = "auto", dtype: DType = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, max=4_096, help="Pictures in one UNet call. Default: as many as pay.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Gets <size>-<device>.json and .md.")] = Path("results/perf"),
) -> None:  # fmt: skip
    """Measure what the harness costs and saves, as ratios of runs that take turns in one process.

    Examples: `python -m bench perf` (about half an hour on 2 cores) · `python -m bench perf --pairs 2 --images 8 --table 8` ·
    `python -m bench perf --size sd15 --dtype bfloat16` (on a GPU) · `python -m bench perf --size sd15 --steps 2 --images 1 --pairs 1
    --batch-size 1 --eager` (that it works, on a CPU)
    """
    found = registry.suite(suite)
    from bench.diffusion.numerics import pick_device
    from bench.perf.report import PARTS, Scope, as_table, measure

    names = PARTS[size] if parts is None else tuple(name.strip() for name in parts.split(","))
    for name in names:
        if name not in PARTS[size]:
            raise unknown(f"part for --size {size}", name, PARTS[size])
    where, slots = pick_device(device), 2 * batch_size if batch_size else None
    scope = Scope(suite if size == "suite" else size, names, images, steps or (20 if size == "suite" else 100), pairs, compiled, table)
    with err.status("perf") as status:
        values = measure(found, scope, where, dtype, slots, folder, lambda text: status.update(f"perf: {text}"))
    out.print(as_table(values), markup=False, highlight=False, soft_wrap=True)
    err.print(f"Figures: {folder}", highlight=False, soft_wrap=True)


def numerics(
    first: Annotated[str, typer.Argument(metavar="A", help="`bfloat16`, `float32:batch_size=8`, `bfloat16:compile=yes` …")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    suite: SuiteName = "minicanvas",
    pictures: Annotated[int, typer.Option(min=1, max=1_000_000, help="Pictures of the un-edited model, with each setting.")] = 240,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps. Default: the preset full's.")] = None,
    device: Device = "auto",
) -> None:
    """Measure how often a judge sees something else when the same requests are sampled with other numerics.

    Runs with different numerics start from the same noise; what differs is rounding. `run` never mixes them in one folder's units.

    Example: `python -m bench numerics bfloat16 float32 --pictures 240`
    """
    from bench.diffusion.numerics import pick_device
    from bench.flips import Setting, label_flips

    chosen = registry.suite(suite)
    settings = Setting.parse(first), Setting.parse(second)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("sampling", total=2 * pictures)
        table = label_flips(
            chosen, *settings, pictures, steps or chosen.presets["full"].steps, pick_device(device), lambda n: progress.advance(task, n)
        )
    show_frame(table, f"{first} against {second}")


def attack_loss(
    folder: Annotated[Path, typer.Argument(help="A run's folder, with attacks.")],
    methods: Annotated[str, typer.Option(help="Rows, comma-separated, as the table labels them. Default: all.")] = "",
    device: Device = "auto",
) -> None:
    """Measure whether a run's attacks lowered the loss that they minimise: of what they ended with, on noise that they never saw.

    Relative to the clean prompt's; compare with null-control's. Writes attack_losses.csv into the folder. Half a minute a row on a core.

    Example: `python -m bench attack-loss results/runs/minicanvas-quick --methods uce`
    """
    from bench.attack_loss import FILE, attack_losses, summary
    from bench.store import Store

    with err.status("attack-loss") as status:
        found = attack_losses(Store.open(folder), [name for name in methods.split(",") if name], device, lambda text: status.update(text))
    shown = Table("row", "kind", "attack", "goals", "loss ÷ clean", "lower on")
    for row in summary(found).itertuples():
        shown.add_row(row.label, row.kind, row.attack, str(row.goals), f"{row.ratio:.2f}", f"{row.lower:.0%}")
    out.print(shown)
    err.print(str(folder / FILE), highlight=False, soft_wrap=True)
