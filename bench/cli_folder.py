"""Commands on a run's folder: `report`, `status`, `verify`. None needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from bench.cli_options import err, out, show_leaderboard
from bench.errors import BenchError

Format = Literal["pdf", "svg"]
Folder = Annotated[Path, typer.Argument(help="A run's folder.")]


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="A run's folder, what was published of one, or several.")],
    to: Annotated[Path | None, typer.Option(help="Also write tables and records (of one run the picture too) here, to publish.")] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="A Markdown file that gets the brief tables, between `<!-- table NAME -->`, the folder's name, and `<!-- /table -->`."
        ),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="A run that had the machine to itself: its costs take the place of the same rows' own. With --to.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing: compare what would be written with what is there.")] = False,
) -> None:
    """Make a run's tables and picture again from its records and units, or one table of several runs.

    Runs that are merged have the same suite, preset and cells, and a row that lacks concepts is not ranked; what was published of a run
    (`--to`) can take its place, so that a leaderboard grows: `python -m bench report results/leaderboards/minicanvas results/runs/new
    --to results/leaderboards/minicanvas`.

    Costs measured beside other work mislead. A small run of the same methods, with nothing beside it, has better ones: `python -m bench
    report results/runs/large --costs results/runs/small --to results/leaderboards/large`. It may have fewer concepts, which the tables say.

    Of a run that is not done yet, report.html shows what is there so far.

    With --check the exit status is 1 if a file is not, byte for byte, what its records make; on another machine the last digits of
    unrounded numbers may differ.
    """
    from bench.files import write_atomic
    from bench.store import Store
    from bench.tables import finished, merge, preview, publish, with_excerpt
    from bench.tables import report as rebuild

    if (len(folders) > 1 or costs) and to is None:
        raise BenchError("Several folders, or one with the costs of another, make a table of their own: --to FOLDER says where it is.")
    place = to or folders[0]
    if check:
        _check(folders, place, into, costs)
        return
    store = Store(folders[0])
    if len(folders) > 1 or costs or not store.config():
        leaderboard = merge(folders, place, costs)
    elif records := finished(store):
        leaderboard = rebuild(Store.open(folders[0]), records)
        if to is not None:
            publish(store, to)
    else:
        if to is not None or into is not None:
            raise BenchError(f"{folders[0]} is not done: what is there is for report.html alone. Finish it with the command that began it.")
        leaderboard = preview(Store.open(folders[0]))
        err.print(f"Not done: only {folders[0] / 'report.html'} was written.", highlight=False, soft_wrap=True)
    if into is not None:
        write_atomic(into, with_excerpt(into.read_text(), leaderboard, place.name).encode())
    show_leaderboard(leaderboard)


def _check(folders: Sequence[Path], place: Path, into: Path | None, costs: Path | None) -> None:
    """Name every table that is not what its records make, and end with status 1 if there is one."""
    from bench.tables import differing

    mend = "`report` without --check (or `matched`) writes it again; if not, nothing makes it"
    found = differing(folders, place, into, costs)
    for path in found:
        out.print(f"{path} is not what its records make: {mend}.", highlight=False, soft_wrap=True)
    if found:
        raise typer.Exit(1)
    drawn = ", ".join(sorted(path.name for path in place.iterdir() if path.suffix in (".html", ".png")))
    drawn = f" (not compared, as they have pictures: {drawn})" if drawn else ""
    out.print(f"All tables are what their records make{drawn}.", highlight=False, soft_wrap=True)


def plot(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or what was published of one.")],
    to: Annotated[Path | None, typer.Option(help="Where to. Default: FOLDER/figures.")] = None,
    kind: Annotated[Format, typer.Option("--format", help="Vectors, for LaTeX (pdf) or the web (svg).")] = "pdf",
) -> None:
    """Draw figures for a paper from a run's records: scores, trade-off, concepts, and attacks if there are any.

    Example: `python -m bench plot results/leaderboards/minicanvas-sae --to figures`
    """
    from bench.plots import draw_all
    from bench.tables import leaderboard_from

    for path in draw_all(leaderboard_from(folder), to or folder / "figures", kind):
        out.print(str(path), highlight=False, soft_wrap=True)


def status(folder: Folder) -> None:
    """What a run has done, what is missing or broke, and how long the rest takes at the pace of its last units.

    From another shell too, while it runs. Files are counted, not read: `verify` reads them.
    """
    from bench.progress import progress_of
    from bench.store import Store

    found = progress_of(Store.open(folder))
    table = Table("method", "units", "of", "pictures", "of", "failed")
    for row in (*found.methods, found.total):
        table.add_row(row.label, *map(str, (row.units_done, row.units, row.pictures_done, row.pictures, row.failed)))
    out.print(table)
    for name, reason in found.failed.items():
        out.print(f"{name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    out.print(found.sentence(), highlight=False, soft_wrap=True)


def verify(
    folder: Folder,
    clean: Annotated[bool, typer.Option("--clean", help="Remove temporary files that killed processes left. Not while one runs.")] = False,
) -> None:
    """Read the files of a run again: units and tensors of erasures against their digests, tables against the records they are made of.

    A damaged unit is set aside, into `damaged/`, and the run's command makes it again. Exit status 1 if anything was found.
    """
    from bench.store import Store
    from bench.verify import damaged_units, other_damage, temporary_files

    store = Store.open(folder)
    files = store.all_unit_files()
    found = other_damage(store)  # before units are set aside, which the picture is made of
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("units", total=len(files))
        found += damaged_units(store, files, lambda: progress.advance(task))
    stale = temporary_files(store)
    for path in stale if clean else ():
        path.unlink(missing_ok=True)
    for text in dict.fromkeys(found):
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    if stale:
        out.print(f"{len(stale)} temporary files {'removed' if clean else 'of killed or running processes: --clean removes them'}")
    out.print(f"{len(files)} units read: {f'{len(found)} things are not as they should be' if found else 'all is as it should be'}")
    if found:
        raise typer.Exit(1)
