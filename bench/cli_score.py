"""The command that scores pictures which somebody has already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import registry
from bench.cli_options import AssetFiles, AssetFolder, Device, Examine, SuiteName, err, examiner_names, show_frame, show_leaderboard
from bench.cli_progress import Bar, progress_bar
from bench.config import parse_targets
from bench.errors import BenchError, unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.external import Found
    from bench.store import Store
    from bench.suites.suite import Suite
    from bench.types import Record

NAMED = 5
"""Missing pictures that are named, of each target."""


def score(
    pictures: Annotated[Path, typer.Argument(help="Folder of STYLE_OBJECT_seedS.jpg, or of folders of these that concepts name.")],
    method: Annotated[str, typer.Option(help="What to call the method; none for the unedited model, which others are ranked against.")],
    suite: SuiteName = "unlearncanvas",
    target: Annotated[str | None, typer.Option(help="The concept that was removed, where no folder's name says it.")] = None,
    preset: Annotated[str, typer.Option(help="How much of the protocol the pictures are to cover.")] = "full",
    seeds: Annotated[int | None, typer.Option(min=1, max=10_000, help="How many of the protocol's seeds.")] = None,
    device: Device = "auto", examine: Examine = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Gets records and tables of all methods scored into it. "
                                                              "Default: results/scores/SUITE-PRESET.")] = None,
    assets: AssetFolder = None, files: AssetFiles = None,
) -> None:  # fmt: skip
    """Score pictures that were sampled elsewhere with a suite's judges, into the same records and tables as a run's.

    Pictures that the protocol asks for and that are not there are counted and named. One command a method; give the unedited model's
    too, to have scores and ranks: `python -m bench score base/ --method none`.

    Example: `python -m bench score eval_results/mu_results/esd/style50 --suite unlearncanvas@official --method ESD`
    """
    found = registry.suite(suite)
    if preset not in found.presets:
        raise unknown("preset", preset, found.presets)
    amount = replace(found.presets[preset], seeds=seeds or found.presets[preset].seeds)
    one = parse_targets(target, found)[0] if target else None
    if not method.strip() or (method == "none" and one):
        raise BenchError("--method names the method; none, the unedited model, has no --target.")
    with err.status("loading torch and the judges"):
        from bench.diffusion.numerics import pick_device
        from bench.external import merged, record_of, scan, strangers
        from bench.external import score as judge
        from bench.scoring import Scorer

        there = scan(found, amount, pictures, one, method == "none")
        scorer = Scorer.load(found, pick_device(device), examiner_names(examine))
    _tell_gaps(there, *(strangers(found, pictures) if one is None and method != "none" else ([], 0)))
    place = folder or Path("results") / "scores" / f"{Path(found.key).stem}-{preset}"
    protocol = found.protocol(preset, amount)
    store = _open(place, found.key, preset, amount.seeds, amount.steps, protocol)
    records = store.records() if any((place / "records").glob("*.json")) else []
    with progress_bar() as progress:
        bar = Bar(progress)
        bar.say("scoring")
        bar.total(sum(len(own.requests) for own in there), 0)
        scored = judge(there, method, scorer, store, bar.advance)
    record = record_of(found, amount, protocol, method, there, scored, scorer)
    known = next((kept for kept in records if kept.label == method), None)
    record = record if known is None or method == "none" else merged(known, record)
    store.write_records([*(kept for kept in records if kept.label != method), record])
    _show(store, found, record)
    err.print(f"Records and tables: {place}", highlight=False, soft_wrap=True)


def _tell_gaps(there: Sequence[Found], others: Sequence[str], absent: int) -> None:
    """What the protocol asks for and is not there, and what is there and it does not ask for."""
    if others:
        err.print(f"Folders that no concept names: {', '.join(others)}", highlight=False, soft_wrap=True)
    if absent:
        err.print(f"{absent} concepts have no folder: means are over the others", highlight=False, soft_wrap=True)
    for own in there:
        if own.missing or own.others:
            names = ", ".join(own.missing[:NAMED]) + (" …" if len(own.missing) > NAMED else "")
            what = f"{own.target or 'none'}: {len(own.missing)} of {len(own.requests)} pictures are missing{f' ({names})' if names else ''}"
            err.print(f"{what}; {own.others} files are not of the protocol", highlight=False, soft_wrap=True)


def _open(place: Path, suite: str, preset: str, seeds: int, steps: int, protocol: str) -> Store:
    """The folder, begun or of the same protocol."""
    from bench.store import Store

    store = Store.create(place)
    config = {
        "suite": suite, "preset": preset, "targets": [], "seeds": seeds, "steps": steps, "batch_size": None, "protocol": protocol,
        "numerics": {"sampled": "elsewhere"},
    }  # fmt: skip
    kept = store.config()
    other = [name for name, value in config.items() if kept and kept.get(name) != value]
    if other:
        raise BenchError(f"{place} holds scores with other {', '.join(other)}: choose another --out.")
    store.write_json("config.json", config)
    return store


def _show(store: Store, suite: Suite, record: Record) -> None:
    """UA, IRA and CRA of every target; with the unedited model's record beside, the whole table."""
    import pandas as pd

    from bench.metrics.unlearning import accuracy, counted, scores
    from bench.tables import report
    from bench.types import KINDS, Target

    frame = pd.DataFrame(record.outcomes)
    if record.method == "none":
        rates = {kind: accuracy(frame[counted(frame, kind, suite.rules)], kind)["accuracy"] for kind in KINDS}
        table = pd.DataFrame([{"kind": kind, "concepts": len(own), "accuracy": own.mean()} for kind, own in rates.items()])
        show_frame(table, "the unedited model")
    else:
        rows = []
        for name, own in frame.groupby("target"):
            found = scores(own, Target.parse(str(name)), suite.rules)
            rows.append(
                {"target": name, "UA": found.ua, "IRA": found.ira, "CRA": found.cra, "pictures": int(own["style_pred"].notna().sum())}
            )
        show_frame(pd.DataFrame(rows), f"{record.label} ({record.protocol})")
    records = store.records()
    methods = {kept.method for kept in records}
    if "none" in methods and len(methods) > 1:
        show_leaderboard(report(store, records))
    elif record.method != "none":
        err.print(
            "Score the unedited model's pictures too (--method none) to have scores, ranks and tables.", highlight=False, soft_wrap=True
        )
