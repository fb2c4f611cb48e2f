r"""A leaderboard for `\input` in a plain pdflatex document with `\usepackage{booktabs,graphicx,siunitx}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.leaderboard.captions import PUBLISHED_FIGURES, PUBLISHED_NOTE, TITLES, reading_of, source_of, under_attack
from bench.leaderboard.cells import Markup, name_of, rank_of, shown
from bench.leaderboard.table import KINDS, Cell, Column, Leaderboard, Row

LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    # A row that starts with "[" would be read as the argument of the line break before it.
    **{"†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "±": r"$\pm$", "→": r"$\to$"},
    **{"<": "$<$", ">": "$>$", "[": "{[}", "]": "{]}", "–": "--", "−": "$-$", "×": r"$\times$", "\N{NO-BREAK SPACE}": "~"},
}
NOTES = "tab:unlearning-notes"


def to_latex(leaderboard: Leaderboard) -> str:
    """One `table*` per kind of target and one of costs, best in bold, second underlined; in a last one what their marks mean."""
    marks = r"\textsuperscript{{{}}}", r"\textsuperscript{\textdagger}", r"\textsuperscript{\textdaggerdbl}"
    markup = Markup(_escape, r"\textbf{{{}}}", r"\underline{{{}}}", *marks)
    tables = [_table(leaderboard, name, markup) for name in leaderboard.tables()]
    if leaderboard.published:
        tables.append(_published(leaderboard.published))
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs,graphicx,siunitx}. The last table explains the others: it may go to an appendix.",
            *tables,
            _notes(leaderboard, markup),
        ]
    )


def _table(leaderboard: Leaderboard, table: str, markup: Markup) -> str:
    """Values in `S` columns, each with its interval beside it; what nobody has and what is only shown is left to the CSV."""
    rows = [row for group in leaderboard.groups(table) for row in group]
    columns = [column for column in leaderboard.columns_of(table) if _wanted(column, rows)]
    ranked = table in KINDS
    align, header = ("l" if ranked else "") + "l", (["{Rank}"] if ranked else []) + ["Method"]
    for column in columns:
        title = _escape(column.title)
        align += _format(column, rows) + (r"@{\,}l" if _beside(column, rows) else "")
        header.append(rf"\multicolumn{{2}}{{c}}{{{title}}}" if _beside(column, rows) else f"{{{title}}}")

    def written(row: Row) -> str:
        cells = [_escape(rank_of(row.ranks.get(table)))] if ranked else []
        cells.append(name_of(row, table, markup))
        for column in columns:
            place, unsure = leaderboard.places(column).get(row.label), row.label in leaderboard.unsure(column)
            cell, dagger = row.cells[table, column.key], markup.dagger if unsure else ""
            beside = [_spread(cell, column) + dagger] if _beside(column, rows) else []
            cells += [_value(cell, column, markup, place, "" if beside else dagger), *beside]
        return " & ".join(cells) + r" \\"

    body = "\n\\midrule\n".join("\n".join(written(row) for row in group) for group in leaderboard.groups(table))
    marked = any(leaderboard.places(column) for column in columns)
    marks = " Best bold, second underlined; small: 95 % intervals" if marked else ""
    marks += "; in brackets: ranks that could be." if ranked and marks else "." if marks else ""
    caption = f"{_escape(f'{TITLES[table]}. {source_of(leaderboard)}{marks}')} Notes: Table~\\ref{{{NOTES}}}."
    settings = [r"\renewcommand{\arraystretch}{1.4}", r"\sisetup{table-number-alignment=right,table-text-alignment=right}"]
    return _float(caption, _label(table), [*settings, *_tabular(align, header, body)])


def _published(rows: Sequence[Mapping[str, Any]]) -> str:
    """What papers say, aligned at the decimal point, with their doubts and sources as notes of its own."""
    figures = [name for name in PUBLISHED_FIGURES if any(row.get(name) is not None for row in rows)]
    attacked = any(map(under_attack, rows))
    said = list(dict.fromkeys(text for row in rows for text in (row.get("source"), row.get("doubt")) if text))

    def written(row: Mapping[str, Any]) -> str:
        marks = ",".join(str(said.index(text) + 1) for text in (row.get("source"), row.get("doubt")) if text)
        values = ("{--}" if row.get(name) is None else f"{row[name]:g}" for name in figures)
        name = rf"{_escape(row['method'])}\textsuperscript{{{marks}}}"
        return " & ".join([name, _escape(row["concepts"]), *values, *([_escape(under_attack(row))] if attacked else [])]) + r" \\"

    titles = ["Method", "Concepts", *(f"{{{name.upper()}}}" for name in figures), *(["UA under attack"] if attacked else [])]
    notes = [rf"\textsuperscript{{{n}}} {_escape(text)}" for n, text in enumerate(said, 1)]
    align = rf"ll*{{{len(figures)}}}{{S[table-format=3.2]}}{'l' if attacked else ''}"
    content = [*_tabular(align, titles, "\n".join(map(written, rows))), r"\par\smallskip\raggedright", "\\par\n".join(notes)]
    return _float(f"Published figures. {_escape(PUBLISHED_NOTE)}", "tab:unlearning-published", content)


def _notes(leaderboard: Leaderboard, markup: Markup) -> str:
    """How to read the tables, what they say alike said once, and all footnotes."""
    readings: dict[str, list[str]] = {}
    for table in leaderboard.tables():
        readings.setdefault(reading_of(leaderboard, table), []).append(rf"\ref{{{_label(table)}}}")
    notes = [f"Table~{', '.join(tables)}: {_escape(text)}" for text, tables in readings.items() if text]
    notes += [f"{markup.mark.format(n)} {_escape(text)}" for n, text in enumerate(leaderboard.footnotes, 1)]
    notes += map(_escape, leaderboard.remarks)
    caption = _escape(f"Notes to the tables of unlearning. {source_of(leaderboard)}")
    return _float(caption, NOTES, [r"\raggedright", "\\par\n".join(notes)])


def _float(caption: str, label: str, content: Sequence[str]) -> str:
    begin = [r"\begin{table*}", r"\setlength{\belowcaptionskip}{6pt}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
    return "\n".join([*begin, f"\\caption{{{caption}}}", f"\\label{{{label}}}", *content, "\\end{table*}\n"])


def _tabular(align: str, header: Sequence[str], body: str) -> list[str]:
    """No wider than the page, whatever that is."""
    begin = [r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{", f"\\begin{{tabular}}{{{align}}}"]
    return [*begin, r"\toprule", " & ".join(header) + r" \\", r"\midrule", body, r"\bottomrule", r"\end{tabular}}"]


def _label(table: str) -> str:
    return f"tab:unlearning-{table.replace(' ', '-')}"


def _wanted(column: Column, rows: Sequence[Row]) -> bool:
    """Not what is only shown, what stands beside another, or what nobody has: the CSV has it all."""
    shown_alone = (column.direction == "none" and column.key != "goals") or column.key in ("ar_retained", "clip_retained")
    return not shown_alone and any(row.cells[column.table, column.key].value is not None for row in rows)


def _beside(column: Column, rows: Sequence[Row]) -> bool:
    """Whether an interval or a spread stands beside the value."""
    bounded = column.unit == "share" and not column.key.startswith("ar_")
    return bounded or any(row.cells[column.table, column.key].seed_sd is not None for row in rows)


def _format(column: Column, rows: Sequence[Row]) -> str:
    """An `S` column as wide as its largest number."""
    values = [value * column.scale for row in rows if (value := row.cells[column.table, column.key].value) is not None]
    minus = "-" if min(values) < 0 else ""
    return f"S[table-format={minus}{max(len(f'{abs(value):.0f}') for value in values)}.{column.digits}]"


def _value(cell: Cell, column: Column, markup: Markup, place: int | None, dagger: str) -> str:
    """A number for an `S` column; what is marked is text there, which the column aligns as the numbers."""
    text = "{--}" if cell.value is None else shown(cell.value, column)
    if cell.value is not None and (place or dagger):
        after = rf"\rlap{{{dagger}}}" if dagger else ""
        text = f"{{{markup.place(text.replace('-', '−'), place)}{after}}}"
    return text


def _spread(cell: Cell, column: Column) -> str:
    """The interval of a value, its bounds one above the other, or its spread over seeds."""
    if cell.seed_sd is not None:
        return rf"{{\tiny ~$\pm$ {shown(cell.seed_sd, column)}}}"
    if cell.low is None or cell.high is None:
        return ""
    return f"$^{{{shown(cell.high, column)}}}_{{{shown(cell.low, column)}}}$"


def _escape(text: str) -> str:
    """Text for plain pdflatex: what its fonts lack stands as its code point."""
    return "".join(LATEX.get(char, char if ord(char) < 0x180 else f"U+{ord(char):04X}") for char in text)
