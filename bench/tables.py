"""A run's folder as tables and a picture. Needs no torch: it reads what was stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from bench.attack_grid import draw_attacks
from bench.errors import BenchError
from bench.files import write_atomic
from bench.gallery import gallery
from bench.grid import draw_grid
from bench.leaderboard.build import build
from bench.leaderboard.compare import matched
from bench.leaderboard.export import to_excerpt, write_all
from bench.leaderboard.html import to_html
from bench.leaderboard.sequence import sequence, to_markdown
from bench.leaderboard.table import Leaderboard
from bench.metrics.unlearning import CELL, NONE
from bench.partial import records_so_far
from bench.progress import progress_of
from bench.published import published_rows
from bench.registry import suite as find_suite
from bench.store import Store, read_records
from bench.types import MetricRules, Record

PAGE, LOOK = "report.html", "look.json"
TABLES = ("*.csv", "leaderboard.*", "citations.bib")
FRACTION = re.compile(rb"(?<![\w.])-?(?:\d+\.\d+(?:e[-+]\d+)?|\d+e[-+]\d+)(?![\w.])")
SEQUENTIAL = ("sequential.csv", "sequential.md")
"""What is made of records in an order that the run's configuration alone knows."""


def report(store: Store, records: Sequence[Record]) -> Leaderboard:
    """Tables and picture from a run's records and the units that are there, into its folder."""
    leaderboard = leaderboard_of(store, records)
    write_tables(leaderboard, records, store, store.folder)
    write_page(leaderboard, records, [store], store.folder)
    return leaderboard


def preview(store: Store) -> Leaderboard:
    """What a run that is not done has so far: `report.html` alone, marked as unfinished. BenchError if nothing is there."""
    records, config = records_so_far(store), store.config()
    done = progress_of(store).total
    leaderboard = _leaderboard(records, config["suite"], config["preset"], str(store.folder / "config.json"))
    state = f"unfinished: {done.pictures_done} of {done.pictures} pictures are there; distances and artifacts come with the end"
    leaderboard = replace(leaderboard, invalid=state)
    write_page(leaderboard, records, [store], store.folder)
    return leaderboard


def finished(store: Store) -> list[Record]:
    """The records of its last command, not of one before that had fewer methods; none before it is done. See `Store.records`."""
    if not any((store.folder / "records").glob("*.json")):
        return []
    plan, records = (store.read_json("plan.json", ["plan"]) or {}).get("plan"), store.records()
    return records if plan in (None, records[0].provenance.get("plan")) else []


def refresh_page(store: Store) -> None:
    """`report.html` again, of a run that is done or not."""
    records = finished(store)
    if records:
        write_page(leaderboard_of(store, records), records, [store], store.folder)
    else:
        preview(store)


def write_tables(leaderboard: Leaderboard, records: Sequence[Record], store: Store, folder: Path) -> None:
    """Every file that is made of records and units, but for the page."""
    write_all(leaderboard, folder)
    draw_grid(store, folder)
    draw_attacks(store, folder)
    order = store.config().get("sequential")
    if order:
        table = sequence(records, order, find_suite(store.config()["suite"]).rules)
        write_atomic(folder / SEQUENTIAL[0], table.to_csv(index=False, lineterminator="\n").encode())
        write_atomic(folder / SEQUENTIAL[1], to_markdown(table, order).encode())


def write_page(leaderboard: Leaderboard, records: Sequence[Record], stores: Sequence[Store], folder: Path) -> None:
    """`report.html`, with the pictures that the stores have."""
    pictures = vars(gallery(stores, folder))
    looks = [own for store in stores for own in (store.read_json(LOOK, ["looks"]) or {"looks": []})["looks"]]
    write_atomic(folder / PAGE, to_html(leaderboard, records, pictures, looks).encode())


def leaderboard_of(store: Store, records: Sequence[Record]) -> Leaderboard:
    """The table that a run's records make."""
    config = store.config()
    return _leaderboard(records, config["suite"], config["preset"], str(store.folder / "config.json"))


def merged(folders: Sequence[Path], costs: Path | None = None) -> tuple[Leaderboard, list[Record]]:
    """One table of the records of several runs, or of what was published of them, and these; with `costs`, those of that run's rows.

    What two of them have by one name must have the same outcomes: the one that more attacks were tried on is taken. The unedited model's
    may differ in what another machine rounds: then the first is. BenchError for folders without records and for runs that do not belong
    into one table.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for folder in folders:
        own = read_records(folder)
        if not own:
            raise BenchError(f"{folder} has no records: give the folder of a run, or what `report --to` made of one.")
        for record in own:
            first, known = found.setdefault(record.label, (folder, record))
            _check_same_row(known, first, record, folder)
            if len(record.attacks) > len(known.attacks) and record.outcomes == known.outcomes:
                found[record.label] = (folder, record)
    records = [record for _, record in found.values()]
    if costs is not None:
        records = _with_costs(records, costs)
    _, preset, *_ = records[0].protocol.split("/")
    suite = next((name for folder in folders if (name := Store(folder).config().get("suite"))), suite_name(records))
    leaderboard = _leaderboard(records, suite, preset, str(folders[0]))
    return leaderboard, records


def merge(folders: Sequence[Path], to: Path, costs: Path | None = None) -> Leaderboard:
    """Write `merged`, its records and its page into `to`."""
    leaderboard, records = merged(folders, costs)
    if costs is not None or [folder.resolve() for folder in folders] != [to.resolve()]:
        Store(to).write_records(records)
    write_all(leaderboard, to)
    write_page(leaderboard, records, [Store(folder) for folder in folders], to)
    return leaderboard


def with_excerpt(text: str, leaderboard: Leaderboard, name: str) -> str:
    """A Markdown text with the brief tables between `<!-- table NAME -->` and `<!-- /table -->`. BenchError without such marks."""
    begin, end = f"<!-- table {name} -->", "<!-- /table -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"The text has no {begin} … {end}: put both where the tables shall stand.")
    return f"{before}{begin}\n\n{to_excerpt(leaderboard)}\n{end}{after}"


def suite_name(records: Sequence[Record]) -> str:
    """Of the suite that records are of, as their protocol tells it. One that is a file is known to its runs alone."""
    return records[0].protocol.split("/")[0].rpartition("-v")[0]


def leaderboard_from(folder: Path) -> Leaderboard:
    """The table of a run, or of what was published of one."""
    store = Store(folder)
    if store.config():
        return leaderboard_of(store, store.records())
    records, _ = rows_of(folder)
    return _leaderboard(records, suite_name(records), records[0].protocol.split("/")[1], str(folder))


def rows_of(folder: Path) -> tuple[list[Record], MetricRules]:
    """Records of a run, or of what was published of one, and how its suite counts. BenchError without any."""
    config = Store(folder).config()
    records = Store(folder).records() if config else read_records(folder)
    if not records:
        raise BenchError(f"{folder} has no records: give the folder of a run, or what `report --to` made of one.")
    return records, find_suite(config.get("suite") or suite_name(records)).rules


def write_matched(records: Sequence[Record], rules: MetricRules, method: str, by: str, folder: Path) -> tuple[Path, pd.DataFrame]:
    """`bench.leaderboard.compare.matched` as a file of a folder, and the table."""
    table, path = matched(records, method, by, rules), folder / f"matched-{method}-{by}.csv"
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())
    return path, table


def differing(folders: Sequence[Path], at: Path, into: Path | None = None, costs: Path | None = None) -> list[Path]:
    """Files below `at` that are missing or other than what a run, or several records' folders, make; see `alike`.

    Tables that no record makes are among them, and a Markdown file `into`, if its excerpt is another. What is drawn of pictures is not.
    """
    with TemporaryDirectory() as scratch:
        made = Path(scratch)
        store = Store(folders[0])
        if len(folders) > 1 or costs is not None or not store.config():
            leaderboard, records = merged(folders, costs)
            Store(made).write_records(records)
            write_all(leaderboard, made)
        else:
            records = store.records()
            leaderboard = leaderboard_of(store, records)
            write_tables(leaderboard, records, store, made)
        rules = find_suite(store.config().get("suite") or suite_name(records)).rules
        for method, by in {(record.method, by) for record in records for by in record.config}:
            if (at / f"matched-{method}-{by}.csv").exists():
                write_matched(records, rules, method, by, made)
        pairs = [(at / path.relative_to(made), path) for path in sorted(made.rglob("*")) if path.is_file()]
        found = [own for own, path in pairs if not own.is_file() or not alike(own.read_bytes(), path.read_bytes())]
        known = {own for own, _ in pairs} | {at / name for name in SEQUENTIAL}
        found += sorted(path for pattern in TABLES for path in at.glob(pattern) if path not in known)
    if into is not None and with_excerpt(into.read_text(), leaderboard, at.name) != into.read_text():
        found.append(into)
    return found


def alike(one: bytes, other: bytes) -> bool:
    """Whether two files are the same bytes, but for the last digits of fractions: processors add up in another order.

    Numbers are unrounded in CSV and JSON; those that are may differ by 1e-9 of their size, and by as much where they are smaller than 1.
    """
    if one == other:
        return True
    if FRACTION.split(one) != FRACTION.split(other):
        return False
    first, second = (np.array(FRACTION.findall(text), dtype=np.float64) for text in (one, other))
    return bool(np.allclose(first, second, rtol=1e-9, atol=1e-9))


def _with_costs(records: Sequence[Record], folder: Path) -> list[Record]:
    """Records with what the same rows cost in another run. BenchError for rows that it has not, or has with other parameters."""
    if not folder.is_dir():
        raise BenchError(f"--costs {folder} is no folder: give that of a run.")
    measured = {record.label: record for record in rows_of(folder)[0]}
    missing = [record.label for record in records if not measured.get(record.label) or not measured[record.label].cost]
    if missing:
        raise BenchError(f"{folder} has no costs of {_some(missing)}: run these methods there too, tuned and untuned as they are here.")
    other = [record.label for record in records if not _same_method(record, measured[record.label])]
    if other:
        raise BenchError(
            f"{folder} has {_some(other)} with other versions, parameters or tuning: what they cost says nothing of these rows."
        )
    for record in records:
        _check_same_work(record, measured[record.label], folder)
    return [_at_cost_of(record, measured[record.label]) for record in records]


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} others" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more


def _at_cost_of(record: Record, other: Record) -> Record:
    source = other.provenance.get("costs") or {
        "plan": other.provenance.get("plan"), "protocol": other.protocol, "numerics": dict(other.numerics),
    }  # fmt: skip
    return replace(record, cost=other.cost, provenance={**record.provenance, "costs": source})


def _check_same_work(record: Record, other: Record, folder: Path) -> None:
    """A picture costs the same but for threads: those of a run are its machine's, and outcomes do not depend on them."""
    (suite, _, *steps), (other_suite, _, *other_steps) = record.protocol.split("/"), other.protocol.split("/")
    if (suite, steps) != (other_suite, other_steps) or record.provenance.get("model") != other.provenance.get("model"):
        raise BenchError(
            f"{folder} is of {other.protocol}, the table of {record.protocol}: costs are to be of the same model, suite and --steps."
        )
    names = sorted(
        name for name in {*record.numerics, *other.numerics} - {"threads"} if record.numerics.get(name) != other.numerics.get(name)
    )
    if names:
        raise BenchError(
            f'{folder} has "{record.label}" with {", ".join(f"{name} {other.numerics.get(name)}" for name in names)}, not'
            f" {', '.join(str(record.numerics.get(name)) for name in names)}: costs are to be measured as the pictures were made."
        )


def _same_method(record: Record, other: Record) -> bool:
    """Whether two rows are of the same method with the same parameters, on the targets that both have.

    A parameter that only one of them has came later. Labels name those that are not at their defaults.
    """
    ours, theirs = ({"": own.config, **(own.tuning or {}).get("configs", {})} for own in (record, other))
    both = [
        (ours[target][name], value) for target in ours.keys() & theirs for name, value in theirs[target].items() if name in ours[target]
    ]
    return (record.method, record.version) == (other.method, other.version) and all(one == value for one, value in both)


def _check_same_row(known: Record, first: Path, other: Record, folder: Path) -> None:
    cells = [name for name in CELL if name in known.outcomes and name in other.outcomes]
    if known.protocol != other.protocol:
        raise BenchError(f"{first} is of the protocol {known.protocol}, {folder} of {other.protocol}: make one table for each.")
    if other.method == NONE:
        if any(sorted(known.outcomes[name]) != sorted(other.outcomes[name]) for name in cells):
            raise BenchError(f"{folder} and {first} are of other concepts or seeds: their rows cannot stand in one table.")
        if known.numerics == other.numerics and known is not other and _verdicts(known) != _verdicts(other):
            raise BenchError(
                f"With the same numerics the unedited model's pictures are judged otherwise in {first} than in {folder}: they are of"
                " another model or another judge, and their rows cannot stand in one table."
            )
    elif (known.config, known.outcomes) != (other.config, other.outcomes):
        raise BenchError(f'{folder} and {first} both have a row "{other.label}", and they differ: leave one of the folders out.')


def _verdicts(record: Record) -> list[tuple[Any, ...]]:
    """What was seen, request by request."""
    columns = [record.outcomes[name] for name in (*CELL, "style_pred", "object_pred")]
    return sorted(zip(*columns, strict=True), key=str)


def _leaderboard(records: Sequence[Record], suite_name: str, preset: str, source: str) -> Leaderboard:
    suite = find_suite(suite_name)
    if preset not in suite.presets:
        raise BenchError(f'{source} names the preset "{preset}", which {suite.name} has not: run again.')
    leaderboard = replace(build(records, suite.rules, suite.floors), published=tuple(published_rows(f"{suite.name}@{suite.profile}")))
    if not suite.presets[preset].ranked:
        rows = tuple(replace(row, ranks={}) for row in leaderboard.rows)
        leaderboard = replace(leaderboard, rows=rows, invalid=f"the preset {preset} only shows that everything works")
    return leaderboard


def publish(store: Store, folder: Path) -> None:
    """Copy what is small and citable out of a run: tables, records, picture."""
    for pattern in (*TABLES, *SEQUENTIAL, "records/*.json", "*.png", PAGE, "report_pictures/*"):
        for path in sorted(store.folder.glob(pattern)):
            write_atomic(folder / path.relative_to(store.folder), path.read_bytes())
