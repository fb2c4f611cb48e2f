"""The LaTeX tables compile with plain pdflatex in one column and in two, and fit the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_up import everything, half, made, none, record, whole

from bench.leaderboard.latex import to_latex
from bench.published import published_rows

DOCUMENT = r"""\documentclass%s{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx,siunitx}
\begin{document}
\input{leaderboard}
\end{document}
"""


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
@pytest.mark.parametrize("columns", ["", "[twocolumn]"])
def test_it_compiles_and_fits(columns: str, tmp_path: Path) -> None:
    published = tuple(published_rows("unlearncanvas@saeuron"))
    (tmp_path / "leaderboard.tex").write_text(to_latex(replace(whole(), published=published)))
    (tmp_path / "main.tex").write_text(DOCUMENT % columns)
    for _ in range(2):  # references
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"], cwd=tmp_path, capture_output=True, text=True,
            errors="replace", timeout=120, check=False,
        )  # fmt: skip
    if "siunitx.sty' not found" in done.stdout:
        pytest.skip("no siunitx here")
    assert done.returncode == 0, done.stdout[-3000:]
    log = (tmp_path / "main.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "undefined references" not in log
    assert (tmp_path / "main.pdf").stat().st_size > 10_000


def test_daggers_stand_where_the_best_may_be_no_better() -> None:
    almost = record("Almost", lambda target, style, obj, n: ("gone", obj) if style in target and (obj, n) != ("x", 1) else (style, obj))
    found = made(none(), record("Good"), almost, record("Half", half))
    lines = {line.split(" & ")[1]: line for line in to_latex(found).splitlines() if line.count(" & ") > 6}
    column = next(column for column in found.columns_of("style") if column.key == "ua")
    assert found.unsure(column) == {"Almost"}
    assert re.search(r"\\underline\{83\.3\}\} & \$\^\{\d+\.\d\}_\{\d+\.\d\}\$\\textsuperscript\{\\textdagger\} &", lines["Almost"])
    assert r"\textdagger" not in lines["Good"]
    table = found.differences
    row = table[(table["metric"] == "ua") & (table[["method", "other"]].apply(set, axis=1) == {"Good", "Half"})]
    assert isinstance(row, pd.DataFrame)
    assert row["significant"].all()


@pytest.mark.parametrize("sure", ["A", "Z"])
def test_what_one_of_the_best_is_surely_better_than_gets_no_dagger(sure: str) -> None:
    """Of two rows at 100 % one may be made of few pictures: nearly all may be as good as it."""
    found = made(none(), record("A"), record("Z"), record("Few", lambda target, style, obj, n: (style, obj) if n == 1 else ("gone", obj)))
    table = found.differences.copy()
    pairs = [{*pair} for pair in zip(table["method"], table["other"], strict=True)]
    for known, unsure in (([], {"Few"}), ([{sure, "Few"}], set())):
        table["significant"] = [pair in known for pair in pairs]
        column = next(column for column in found.columns_of("style") if column.key == "ira")
        assert replace(found, differences=table).unsure(column) == unsure


def test_published_figures_stand_apart_with_their_sources() -> None:
    rows = (
        {"method": "A_B", "concepts": "styles", "ua": 98.5, "ira": 80, "source": "Paper, Table 2", "doubt": "Unsure."},
        {"method": "C", "concepts": "objects", "ua_before": 83.7, "ua_after": 34.2, "attack": "P4D", "source": "Paper, Table 2"},
    )
    text = to_latex(replace(made(none(), record("Good")), published=rows))
    own = text[text.index(r"\caption{Published figures.") : text.index(r"\caption{Notes")]
    assert r"A\_B\textsuperscript{1,2} & styles & 98.5 & 80 &  \\" in own
    assert r"C\textsuperscript{1} & objects" in own
    assert r"83.7 $\to$ 34.2 (P4D)" in own
    assert r"\textsuperscript{2} Unsure." in own


def test_every_table_stands_once_and_one_explains_them() -> None:
    found = made(*everything())
    text = to_latex(found)
    assert text.count(r"\begin{tabular}") == len(found.tables()) == text.count(r"\caption{") - 1
    notes = text[text.index(r"\caption{Notes") :]
    first = "\n" + r"\textsuperscript{1} "
    assert text.count(first) == notes.count(first) == 1
    for name in found.tables():
        assert text.count(rf"\label{{tab:unlearning-{name.replace(' ', '-')}}}") == 1
