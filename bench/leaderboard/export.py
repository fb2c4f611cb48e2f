r"""A leaderboard as CSV, Markdown, LaTeX, BibTeX and rich tables. All are pure functions: same leaderboard, same bytes.

The LaTeX file is for `\input` in a plain pdflatex document with `\usepackage{booktabs,graphicx,siunitx}`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.markup import escape as escape_rich
from rich.table import Table

from bench.files import write_atomic
from bench.leaderboard.captions import BRIEF, PUBLISHED_FIGURES, PUBLISHED_NOTE, TITLES, caption_of, status, title_of, under_attack
from bench.leaderboard.cells import Markup, name_of, rank_of, value_of
from bench.leaderboard.latex import to_latex
from bench.leaderboard.table import KINDS, Column, Leaderboard, Row
from bench.metrics.unlearning import NONE

CSV_FIELDS = (
    "protocol provenance status table label method version control rank rank_best rank_worst column value low high n unit direction"
    " seed_sd unsure unreliable numerics record"
)

PUBLISHED_FIELDS = "method concepts protocol ua ira cra ar ga fid attack ua_before ua_after source doubt".split()  # noqa: SIM905


def to_csv(leaderboard: Leaderboard) -> str:
    """One line per method and value, unrounded and in the unit named; empty where there is no value."""
    lines = []
    for column in leaderboard.columns:
        unsure = leaderboard.unsure(column)
        for row in (row for group in leaderboard.groups(column.table) for row in group):
            cell = row.cells[column.table, column.key]
            head = [leaderboard.protocol, leaderboard.provenance, status(leaderboard), column.table]
            method = [row.label, row.method, row.version, str(row.control).lower(), *row.ranks.get(column.table, (None,) * 3)]
            value = [column.key, cell.value, cell.low, cell.high, cell.n, column.unit, column.direction]
            marks = [cell.seed_sd, str(row.label in unsure).lower(), str(row.unreliable(column.table)).lower()]
            lines.append([*head, *method, *value, *marks, row.numerics, row.record])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([CSV_FIELDS.split(), *lines])
    return text.getvalue()


def targets_csv(leaderboard: Leaderboard) -> str:
    """Every method on every target, shares in [0, 1]; the columns of `per_target` of unlearning and of artifacts."""
    return _frame_csv(leaderboard, leaderboard.targets)


def became_csv(leaderboard: Leaderboard) -> str:
    """What the erased concepts became; the columns of `bench.metrics.unlearning.confusions`."""
    return _frame_csv(leaderboard, leaderboard.became)


def differences_csv(leaderboard: Leaderboard) -> str:
    """All pairs of rows; the columns of `bench.metrics.paired.all_differences`."""
    return _frame_csv(leaderboard, leaderboard.differences)


def published_csv(leaderboard: Leaderboard) -> str:
    """What papers say of the same protocol, in per cent but for FID."""
    text = io.StringIO()
    rows = [[row.get(name) for name in PUBLISHED_FIELDS] for row in leaderboard.published]
    csv.writer(text, lineterminator="\n").writerows([PUBLISHED_FIELDS, *rows])
    return text.getvalue()


def to_markdown(leaderboard: Leaderboard) -> str:
    """One table per kind of target and one of costs, best in bold, second underlined."""
    markup = Markup(_escape_markdown, "**{}**", "<u>{}</u>", " <sup>{}</sup>")
    parts = [f"# {_escape_markdown(title_of(leaderboard, 'Leaderboard'))}"]
    for table in leaderboard.tables():
        columns = leaderboard.columns_of(table)
        header = [_escape_markdown(text) for text in _header(table, columns)]
        align = ["---:" if text == "Rank" else ":---" if text == "Method" else "---:" for text in header]
        rows = [row for group in _groups(leaderboard, table, markup) for row in group]
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, align, *rows)]
        parts += [f"## {title_of(leaderboard, TITLES[table])}", "\n".join(lines), _escape_markdown(caption_of(leaderboard, table))]
    if leaderboard.published:
        parts += ["## Published figures", _published_markdown(leaderboard.published), PUBLISHED_NOTE]
    if leaderboard.footnotes:
        parts.append("\n".join(f"{number}. {_escape_markdown(text)}" for number, text in enumerate(leaderboard.footnotes, 1)))
    parts += map(_escape_markdown, leaderboard.remarks)
    return "\n\n".join(parts) + "\n"


def to_excerpt(leaderboard: Leaderboard) -> str:
    """Markdown of one brief table per kind of target, with intervals for the score alone."""
    markup, parts = Markup(_escape_markdown, "**{}**", "<u>{}</u>", ""), []
    for table in (name for name in leaderboard.tables() if name in KINDS):
        header = [_escape_markdown(text) for text in _header(table, _columns(leaderboard, table, brief=True))]
        align = [":---" if text == "Method" else "---:" for text in header]
        rows = [row for group in _groups(leaderboard, table, markup, brief=True) for row in group]
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, align, *rows)]
        parts += [f"**{title_of(leaderboard, TITLES[table])}**", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def to_json(leaderboard: Leaderboard) -> str:
    """All tables with what they are made of."""
    head = {"protocol": leaderboard.protocol, "provenance": leaderboard.provenance, "invalid": leaderboard.invalid}
    tables = [table_json(leaderboard, table) for table in leaderboard.tables()]
    notes = {"footnotes": leaderboard.footnotes, "remarks": leaderboard.remarks}
    published = [dict(row) for row in leaderboard.published]
    return json.dumps({**head, **notes, "tables": tables, "published": published}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def table_json(leaderboard: Leaderboard, table: str) -> dict[str, Any]:
    """A table as JSON knows it: columns that say what they are, rows from top to bottom with unrounded cells."""
    columns = leaderboard.columns_of(table)
    marks = {column.key: (leaderboard.places(column), leaderboard.unsure(column)) for column in columns}

    def cell(row: Row, column: Column) -> dict[str, Any]:
        own, (places, unsure) = row.cells[table, column.key], marks[column.key]
        return {**asdict(own), "place": places.get(row.label), "unsure": row.label in unsure}

    rows = [
        {
            "label": row.label, "slug": slug(row.label), "group": group, "unreliable": row.unreliable(table),
            "role": "ceiling" if row.method == NONE else "control" if row.control else "",
            "rank": row.ranks.get(table), "notes": row.footnotes, "cells": {column.key: cell(row, column) for column in columns},
        }
        for group, members in enumerate(leaderboard.groups(table)) for row in members
    ]  # fmt: skip
    return {
        "key": table, "title": TITLES[table], "ranked": table in KINDS, "caption": caption_of(leaderboard, table),
        "columns": [asdict(column) for column in columns], "rows": rows,
    }  # fmt: skip


def slug(label: str) -> str:
    """A label as part of an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", label).strip("-")


def to_bibtex(leaderboard: Leaderboard) -> str:
    """The entries of the methods' cards, each once."""
    # No protocol here: outside entries BibTeX ignores everything but "@", which its names contain.
    head = f"% Methods of the leaderboard {leaderboard.provenance} ({status(leaderboard)})"
    return "\n\n".join([head, *leaderboard.citations]) + "\n"


def terminal(leaderboard: Leaderboard, brief: bool = False) -> list[Table]:
    """One rich table per kind of target and one of costs; footnotes stand below the last.

    `brief` fits 80 characters: the columns in `BRIEF`, an interval for the score alone, one caption for all.
    """
    markup = Markup(escape_rich, "[bold]{}[/bold]", "[underline]{}[/underline]", " [dim]({})[/dim]")
    tables = []
    names = [name for name in leaderboard.tables() if not brief or not name.startswith("new ")]
    for name in names:
        columns = _columns(leaderboard, name, brief)
        title, caption = escape_rich(title_of(leaderboard, TITLES[name])), escape_rich(caption_of(leaderboard, name))
        if brief:
            last = name == names[-1]
            caption = escape_rich(caption_of(leaderboard, leaderboard.tables()[0])) if last else ""
        space = (0, 0 if brief else 1, 0, 0)  # the box has a space of its own
        table = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=space, pad_edge=False)
        for text in _header(name, columns):
            justify: Literal["left", "right"] = "left" if text == "Method" else "right"
            width = 16 if brief and text == "Method" else None  # a long label takes more lines, not the others' space
            whole = text == "Rank" or text.startswith("Score")
            table.add_column(escape_rich(text), justify=justify, no_wrap=whole, min_width=6, width=width, overflow="fold")
        for group in _groups(leaderboard, name, markup, brief):
            for cells in group:
                table.add_row(*cells)
            table.add_section()
        tables.append(table)
    notes = [escape_rich(f"({number}) {text}") for number, text in enumerate(leaderboard.footnotes, 1)]
    tables[-1].caption = "\n".join([str(tables[-1].caption), *notes, *map(escape_rich, leaderboard.remarks)])
    return tables


def write_all(leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write every file of the leaderboard into a folder, each whole or not at all; BenchError where that fails."""
    texts = {
        "leaderboard.csv": to_csv(leaderboard),
        "leaderboard.md": to_markdown(leaderboard),
        "leaderboard.tex": to_latex(leaderboard),
        "leaderboard.json": to_json(leaderboard),
        "citations.bib": to_bibtex(leaderboard),
        "targets.csv": targets_csv(leaderboard),
        "became.csv": became_csv(leaderboard),
        "differences.csv": differences_csv(leaderboard),
    }
    if leaderboard.published:
        texts |= {"published.csv": published_csv(leaderboard)}
    if len(leaderboard.attacks):
        texts |= {"attacks.csv": _frame_csv(leaderboard, leaderboard.attacks)}
        texts |= {"attack_curves.csv": _frame_csv(leaderboard, leaderboard.attack_curves)}
        texts |= {"attack_prompts.csv": _frame_csv(leaderboard, leaderboard.attack_prompts)}
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def _header(table: str, columns: list[Column]) -> list[str]:
    return [*(["Rank"] if table in KINDS else []), "Method", *(column.title for column in columns)]


def _columns(leaderboard: Leaderboard, table: str, brief: bool) -> list[Column]:
    return [column for column in leaderboard.columns_of(table) if not brief or table not in KINDS or column.key in BRIEF]


def _groups(leaderboard: Leaderboard, table: str, markup: Markup, brief: bool = False) -> list[list[list[str]]]:
    """The cells of a table below `_header`, written in a format, by group of rows."""
    columns = _columns(leaderboard, table, brief)
    places = {column.key: leaderboard.places(column) for column in columns}
    unsure = {column.key: leaderboard.unsure(column) for column in columns}

    def written(row: Row) -> list[str]:
        rank = [markup.escape(rank_of(row.ranks.get(table)))] if table in KINDS else []
        cells = [
            value_of(
                row.cells[table, column.key], column, markup, places[column.key].get(row.label), not brief or column.key == "score",
                markup.dagger if row.label in unsure[column.key] else "",
            )
            for column in columns
        ]  # fmt: skip
        return [*rank, name_of(row, table, markup, brief), *cells]

    return [[written(row) for row in group] for group in leaderboard.groups(table)]


def _published_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["Method", "Concepts", *(name.upper() for name in PUBLISHED_FIGURES), "UA under attack", "Source", "Doubt"]
    lines = [header, [":---", ":---", *["---:"] * len(PUBLISHED_FIGURES), ":---", ":---", ":---"]]
    for row in rows:
        values = ("–" if row.get(name) is None else f"{row[name]:g}" for name in PUBLISHED_FIGURES)
        said = (_escape_markdown(row.get(name, "")) for name in ("source", "doubt"))
        lines.append([_escape_markdown(row["method"]), row["concepts"], *values, _escape_markdown(under_attack(row)), *said])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_[]<>|" else char for char in text)


def _frame_csv(leaderboard: Leaderboard, frame: pd.DataFrame) -> str:
    """With the columns `label`, a row's name, and `method`, what it is a row of, as in leaderboard.csv."""
    methods = {row.label: row.method for row in leaderboard.rows}
    named = frame.rename(columns={"method": "label"})
    if len(named.columns):
        named.insert(1, "method", named["label"].map(methods))
    marked = named.assign(protocol=leaderboard.protocol, provenance=leaderboard.provenance, status=status(leaderboard))
    return str(marked.to_csv(index=False, lineterminator="\n"))
