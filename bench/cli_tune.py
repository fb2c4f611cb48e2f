"""The command that finds a method's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from bench import registry
from bench.cli_options import BATCH_SIZE, AssetFiles, AssetFolder, BatchSize, Device, DType, SuiteName, err, out
from bench.cli_progress import Bar, progress_bar
from bench.config import parse_targets, whole_path
from bench.errors import BenchError


def tune(
    name: Annotated[str, typer.Argument(metavar="METHOD", help="What to tune; `list methods` names it, or path/to/file.py:MyMethod.")],
    suite: SuiteName = "minicanvas",
    concepts: Annotated[str, typer.Option(help="Names, `styles`, `objects` or `all`, one at a time each.")] = "all",
    settings: Annotated[int, typer.Option(min=2, max=10_000, help="Settings to try per concept, the untuned one among them.")] = 9,
    pictures: Annotated[int, typer.Option(min=4, max=10_000_000, help="Pictures per concept, over all settings together.")] = 240,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps. Default: the preset quick's.")] = None,
    device: Device = "auto", dtype: DType = "auto", batch_size: BatchSize = BATCH_SIZE,
    path: Annotated[Path | None, typer.Option("--out", help="A TOML file, for `run --tuned`. Default: where the suite reads METHOD's; "
                                                                  "for one that is not of this project, tuned/METHOD.toml.")] = None,
    grid: Annotated[Literal["own", "published"], typer.Option(help="Settings of the project, or those that the authors tried.")] = "own",
    judge: Annotated[Literal["tuning", "evaluation"], typer.Option(help="Who chooses. The evaluation's own judge flatters the row, which "
                                                                        "says so; some suites have no other.")] = "tuning",
    share: Annotated[bool, typer.Option("--share", help="One setting for all of a kind: the best by the mean over --concepts.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Start the file anew, all of its concepts.")] = False,
    assets: AssetFolder = None, files: AssetFiles = None,
) -> None:  # fmt: skip
    """Find a method's parameters per concept, or per kind, by successive halving, within a budget that is the same for all methods.

    Judge, noise and prompts are the tuning's own; the objective is the score that ranks. `run` then has two rows of the method,
    tuned and untuned. The same command again continues with the concepts that the file lacks. Where fits are slow, `--share` tries
    the settings on some concepts of a kind and takes one for all.

    Examples: `python -m bench tune sld --concepts neon,fish` ·
    `python -m bench tune esd --share --concepts neon,pop,fish,key` · the authors' grid and judge, though not their
    objective, and by halving: `python -m bench tune saeuron --suite
    unlearncanvas@saeuron --concepts objects --grid published --judge evaluation --settings 22 --pictures 20580`
    """
    found, given, name = registry.suite(suite), name, whole_path(name)
    registry.require(name)
    targets = parse_targets(concepts, found)
    joint = [str(target) for target in targets if len(target.concepts) > 1]
    if joint:
        raise BenchError(f'"{joint[0]}" in --concepts: concepts are tuned one at a time.')
    short, own = registry.short_name(name), registry.is_ours(name)
    place = path or (found.tuned_file(short, share) if own else Path("tuned") / f"{short}.toml")
    if place is None:
        raise BenchError(f"{suite} has no folder for tuned parameters: give --out FILE.")
    with err.status("loading torch, the model and the tuning judge"):
        from bench.trials import Budget
        from bench.tune import prepare
        from bench.tune import tune as search
        from bench.tuned import read

        kept = {} if again else read(place)
        budget, chosen = Budget(settings, pictures), [target.concepts[0] for target in targets]
        steps = steps or found.presets["quick"].steps
        tuner = prepare(found, name, budget, steps, device, dtype, batch_size, kept, grid, judge, chosen if share else ())
    err.print(f"{name}: {len(tuner.settings)} settings, {tuner.pictures} pictures a concept", highlight=False)
    with progress_bar() as progress:
        body = search(tuner, chosen, place, kept, Bar(progress), lambda text: err.print(text, highlight=False, markup=False))
    _show_tuned(name, body, [str(concept) for concept in chosen])
    if body["concepts"]:
        err.print(f"Tuned parameters: {place}", highlight=False, soft_wrap=True)
        if place != found.tuned_file(short, share):
            err.print(f"To run with them: python -m bench run --methods {given} --tuned {short}={place}", highlight=False, soft_wrap=True)


def _show_tuned(name: str, body: dict[str, dict[str, Any]], concepts: list[str]) -> None:
    note = "Scores in %, on the very pictures that chose (in-sample: too high); a setting that left early was judged on fewer."
    table = Table("concept", "untuned", "tuned", "changed parameters", title=f"{name}, tuned", caption=note)
    for concept in concepts:
        if concept in body["scores"]:
            scores = [body["scores"][concept][key] for key in ("untuned", "tuned")]
            changed = ", ".join(f"{key}={value}" for key, value in body["concepts"][concept].items())
            table.add_row(concept, *("failed" if score < 0 else f"{100 * score:.1f}" for score in scores), changed or "none")
    out.print(table)
