r"""A leaderboard for `\input` in a plain pdflatex document with `\usepackage{booktabs,graphicx,siunitx}`."""

from __future__ import annotations

from collections.abc import Sequence

from bench.leaderboard.captions import TITLES, reading_of, source_of
from bench.leaderboard.cells import Markup, name_of, rank_of, shown
from bench.leaderboard.table import KINDS, Cell, Column, Leaderboard, Row

LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    # A row that starts with "[" would be read as the argument of the line break before it.
    **{"†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "±": r"$\pm$"},
    **{"<": "$<$", ">": "$>$", "[": "{[}", "]": "{]}", "–": "--", "−": "$-$", "×": r"$\times$", "\N{NO-BREAK SPACE}": "~"},
}


def to_latex(leaderboard: Leaderboard) -> str:
    """One `table*` per kind of target and one of costs, best in bold, second underlined."""
    marks = r"\textsuperscript{{{}}}", r"\textsuperscript{\textdagger}", r"\textsuperscript{\textdaggerdbl}"
    markup = Markup(_escape, r"\textbf{{{}}}", r"\underline{{{}}}", *marks)
    names = leaderboard.tables()
    tables = [_table(leaderboard, name, markup, names[0]) for name in names]
    return "\n".join(["% Needs \\usepackage{booktabs,graphicx,siunitx}.", *tables])


def _table(leaderboard: Leaderboard, table: str, markup: Markup, notes_at: str) -> str:
    """Values in `S` columns, each with its interval beside it; what nobody has and what is only shown is left to the CSV."""
    rows = [row for group in leaderboard.groups(table) for row in group]
    columns = [column for column in leaderboard.columns_of(table) if _wanted(column, rows)]
    ranked = table in KINDS
    align, header = ("l" if ranked else "") + "l", (["{Rank}"] if ranked else []) + ["Method"]
    for column in columns:
        title = _escape(column.title)
        align += _format(column, rows) + (r"@{\enspace}l" if _beside(column, rows) else "")
        header.append(rf"\multicolumn{{2}}{{c}}{{{title}}}" if _beside(column, rows) else f"{{{title}}}")

    def written(row: Row) -> str:
        cells = [_escape(rank_of(row.ranks.get(table)))] if ranked else []
        cells.append(name_of(row, table, markup))
        for column in columns:
            place, unsure = leaderboard.places(column).get(row.label), row.label in leaderboard.unsure(column)
            cells.append(_value(cell := row.cells[table, column.key], column, markup, place, unsure))
            cells += [_spread(cell, column)] if _beside(column, rows) else []
        return " & ".join(cells) + r" \\"

    body = "\n\\midrule\n".join("\n".join(written(row) for row in group) for group in leaderboard.groups(table))
    marks = " Best bold, second underlined; in brackets 95 % intervals, and ranks that could be." if ranked else ""
    notes = [
        _escape(reading_of(leaderboard, table)),
        *(f"{markup.mark.format(n)} {_escape(text)}" for n, text in enumerate(leaderboard.footnotes, 1)),
    ]
    if notes_at != table:
        notes = [rf"{notes[0] if notes_at not in KINDS or table not in KINDS else ''} Notes: Table~\ref{{tab:unlearning-{notes_at}}}."]
    lines = [
        r"\begin{table*}", r"\setlength{\belowcaptionskip}{6pt}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        r"\sisetup{table-number-alignment=right,table-text-alignment=right}",
        f"\\caption{{{_escape(f'{TITLES[table]}. {source_of(leaderboard)}{marks}')}}}",
        f"\\label{{tab:unlearning-{table.replace(' ', '-')}}}",
        # No wider than the page, whatever that is.
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{",
        f"\\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule", body, r"\bottomrule", r"\end{tabular}}",
        r"\par\smallskip\raggedright " + r"\quad ".join(notes), "\\end{table*}\n",
    ]  # fmt: skip
    return "\n".join(lines)


def _wanted(column: Column, rows: Sequence[Row]) -> bool:
    """Not what is only shown, what stands beside another, or what nobody has: the CSV has it all."""
    shown_alone = column.direction == "none" or column.key in ("ar_retained", "clip_retained")
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


def _value(cell: Cell, column: Column, markup: Markup, place: int | None, unsure: bool) -> str:
    """A number for an `S` column; what is marked is text there, which the column aligns as the numbers."""
    text = "{--}" if cell.value is None else shown(cell.value, column)
    if cell.value is not None and (place or unsure):
        dagger = rf"\rlap{{{markup.dagger}}}" if unsure else ""
        text = f"{{{markup.place(text.replace('-', '−'), place)}{dagger}}}"
    return text


def _spread(cell: Cell, column: Column) -> str:
    """The interval of a value, or its spread over seeds."""
    if cell.seed_sd is not None:
        return rf"{{\tiny $\pm$ {shown(cell.seed_sd, column)}}}"
    if cell.low is None or cell.high is None:
        return ""
    return f"{{\\tiny {{[}}{shown(cell.low, column)}, {shown(cell.high, column)}{{]}}}}"


def _escape(text: str) -> str:
    """Text for plain pdflatex: what its fonts lack stands as its code point."""
    return "".join(LATEX.get(char, char if ord(char) < 0x180 else f"U+{ord(char):04X}") for char in text)
