"""Commands that look into a model: `locate`, `train-sae`, `study`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bench import registry
from bench.cli_options import BATCH_SIZE, BatchSize, Device, DType, SuiteName, err, out, show_frame
from bench.errors import BenchError
from bench.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd


def locate(
    suite: SuiteName = "minicanvas",
    pictures: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures per set of blocks and kind.")] = 60,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps. Default: the preset quick's.")] = None,
    device: Device = "auto", dtype: DType = "auto", batch_size: BatchSize = BATCH_SIZE,
    model: Annotated[Path | None, typer.Option(help="A diffusers folder. Default: the suite's model.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="The table and the heat map go here.")] = Path("results/locate"),
) -> None:  # fmt: skip
    """Find the UNet blocks that decide styles and objects: one block at a time reads the text of another concept.

    Where the picture then shows that other concept, the block decides it; there is where an SAE can remove it. Verdicts are the
    tuning judge's. Writes locate.csv and locate.png.

    Example: `python -m bench locate --pictures 120`
    """
    import io

    from bench.diffusion.loading import load_model
    from bench.diffusion.numerics import pick_device, pick_dtype
    from bench.locate import heat_map, hookpoints
    from bench.locate import locate as find
    from bench.scoring import load_judge

    chosen, where = registry.suite(suite), pick_device(device)
    found = load_model(model or chosen.model_folder(), where)
    precision = pick_dtype(dtype, found, 2 * batch_size)
    with err.status("sampling") as status:
        table = find(
            chosen, found, load_judge(chosen, "tuning", where), precision, 2 * batch_size, pictures,
            steps or chosen.presets["quick"].steps, lambda text: status.update(text),
        )  # fmt: skip
    shown = Table("blocks that read another concept's text", "style stays", "object stays")
    for name, rows in table.groupby("blocks", sort=False):
        cells = {row.kind: f"{row.stays:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in rows.itertuples()}
        shown.add_row(str(name), cells["style"], cells["object"])
    out.print(shown)
    for kind, name in hookpoints(table).items():
        own = ", ".join(chosen.assets.hookpoints.get(kind, ())) or "none"
        out.print(f"{kind}s are decided most at {name}; the suite's hook points for them: {own}", highlight=False)
    buffer = io.BytesIO()
    heat_map(table).save(buffer, "png")
    write_atomic(folder / "locate.csv", table.to_csv(index=False).encode())
    write_atomic(folder / "locate.png", buffer.getvalue())
    err.print(f"Table and heat map: {folder}", highlight=False, soft_wrap=True)


def train_sae(
    suite: SuiteName = "minicanvas",
    hookpoints: Annotated[str, typer.Option(help="Comma-separated blocks of the UNet. Default: the suite's (`locate` finds them).")] = "",
    part: Annotated[str, typer.Option(help="Comma-separated: train, statistics, calibration.")] = "train,statistics,calibration",
    settings: Annotated[list[str] | None, typer.Option("--set", help="param=value of the training, repeatable; see --show.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Only show the parameters of the training and their values here.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps. Default: the preset quick's.")] = None,
    device: Device = "auto", dtype: DType = "auto", batch_size: BatchSize = BATCH_SIZE,
    model: Annotated[Path | None, typer.Option(help="A diffusers folder. Default: the suite's model.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Holds a folder unet.BLOCK per SAE.")] = Path("saes"),
) -> None:  # fmt: skip
    """Train sparse autoencoders on a model's activations, gather statistics per concept, calibrate detectors.

    Activations are streamed from sampling; nothing large is written. The same command again continues after the last whole
    round. For a published SAE put its folders into --out and give `--part statistics,calibration`. At blocks named by
    --hookpoints every concept gets statistics, at the suite's own those of the kind that they decide.

    Use the result with `python -m bench run --methods saeuron --set saeuron.sae=saes`.
    """
    chosen = registry.suite(suite)
    given = {}
    for entry in settings or ():
        name, equals, value = entry.partition("=")
        if not equals:
            raise BenchError(f'--set "{entry}" is not of the form param=value, such as k=16.')
        given[name] = value
    if show:
        _show_recipe({**chosen.sae_settings, **given})
        return
    from bench.diffusion.numerics import pick_device
    from bench.train_sae import train_sae as make

    names = [name for name in hookpoints.split(",") if name]
    parts = [name for name in part.split(",") if name]
    make(
        chosen, names, parts, given, folder, pick_device(device), dtype, 2 * batch_size, steps or chosen.presets["quick"].steps,
        lambda text: err.print(text, highlight=False), model,
    )  # fmt: skip
    err.print(f"SAEs: {folder}", highlight=False, soft_wrap=True)


def look(
    folder: Annotated[Path, typer.Argument(help="A run's folder, with rows of SAE methods.")],
    methods: Annotated[str, typer.Option(help="Rows, comma-separated, as the table labels them. Default: all.")] = "",
    concepts: Annotated[str, typer.Option(help="Targets, comma-separated. Default: all of the run.")] = "",
    device: Device = "auto",
) -> None:
    """Look inside a run's SAE methods, for its report: latents at each step, patches they change, pictures that fire them most.

    Writes look.json into the folder and makes report.html again. Takes up to half a minute an erasure on two cores.

    Example: `python -m bench look results/runs/minicanvas-quick --methods saeuron --concepts neon`
    """
    from bench.config import parse_targets
    from bench.look import look as write
    from bench.store import Store
    from bench.tables import refresh_page

    store = Store.open(folder)
    suite = registry.suite(store.config()["suite"])
    targets = [str(target) for target in parse_targets(concepts, suite)] if concepts else []
    with err.status("look") as status:
        count = write(store, [name for name in methods.split(",") if name], targets, device, lambda text: status.update(text))
    refresh_page(store)
    err.print(f"{count} erasures looked into: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def study(
    suite: SuiteName = "minicanvas",
    concepts: Annotated[str, typer.Option(help="For activations and pictures; detectors are measured for all.")] = "fish,umbrella,neon",
    pictures: Annotated[int, typer.Option(min=6, max=1000, help="Pictures per concept for activations.")] = 16,
    verify: Annotated[int, typer.Option(min=240, max=100_000, help="Pictures for detectors at single steps.")] = 1320,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps. Default: the preset quick's.")] = None,
    device: Device = "auto", dtype: DType = "auto", batch_size: BatchSize = BATCH_SIZE,
    folder: Annotated[Path | None, typer.Option("--out", help="Tables and pictures go here. Default: results/studies/SUITE.")] = None,
) -> None:  # fmt: skip
    """Measure what SAE methods rest on: do latents detect a concept, do they find its place, what do edits do to activations.

    Writes detectors.csv (recall and false positives over whole trajectories), detectors-steps.csv (AUROC and recall per step),
    localisation.csv (IoU with the true place of the object), activations.csv (shift under steering at each strength and under
    replacement), and for each concept latents-CONCEPT.png (the chosen latents per step) and look-CONCEPT.png (the patches that each edit
    changes at some steps, and the pictures with and without it). Methods have their tuned parameters, steering each strength.
    """
    from bench.config import parse_targets
    from bench.diffusion.loading import load_model
    from bench.diffusion.numerics import pick_device, pick_dtype
    from bench.study import Study

    chosen, where = registry.suite(suite), pick_device(device)
    targets = [concept for target in parse_targets(concepts, chosen) for concept in target.concepts]
    model = load_model(chosen.model_folder(), where)
    precision = pick_dtype(dtype, model, 2 * batch_size)
    place = folder or Path("results/studies") / chosen.name
    with err.status("study") as status:
        tables = Study(
            chosen, targets, model, precision, 2 * batch_size, steps or chosen.presets["quick"].steps, pictures, place,
            verify, lambda text: status.update(text),
        ).run()  # fmt: skip
    show_study(tables)
    err.print(f"Tables and pictures: {place}", highlight=False, soft_wrap=True)


def show_study(tables: Mapping[str, pd.DataFrame]) -> None:
    """Print what a study found, of `bench.study.Study.run`."""
    gates, shifts = tables["detectors"].query("features == 2"), tables["activations"]
    for hookpoint, rows in gates.groupby("hookpoint", sort=False):
        show_frame(rows[["concept", "recall", "false_positives", "worst_concept", "worst_rate"]], f"Detectors at {hookpoint}")
    for (concept, hookpoint), rows in shifts.groupby(["concept", "hookpoint"], sort=False):
        columns = ["edit", "mean_shift", "outside", "norm_ratio", "norm_outside", "far", "artifact_auroc"]
        show_frame(rows[[name for name in columns if name in rows]], f"{concept} at {hookpoint}")
    if "localisation" in tables:
        mean = tables["localisation"].groupby("hookpoint")[["iou", "iou_shuffled", "detected", "object"]].mean()
        out.print("localisation, mean over concepts and steps:", mean.round(3).to_string())


def _show_recipe(values: dict[str, object]) -> None:
    recipe = registry.load_object("methods.sae.training:SAERecipe")
    table = Table("parameter", "default", "here", "meaning")
    for name, field in recipe.model_fields.items():
        table.add_row(name, str(field.default), str(values.get(name, "")), field.description or "")
    out.print(table)
