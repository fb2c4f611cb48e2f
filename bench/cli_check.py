"""The command that holds methods against their contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from bench import registry
from bench.cli_options import err, out
from bench.config import parse_variant, whole_path

if TYPE_CHECKING:
    from bench.check.outcome import Finding

ALL = "all"
COLOURS = {"ok": "green", "skipped": "yellow", "failed": "bold red"}


def check(
    names: Annotated[
        list[str],
        typer.Argument(metavar="METHOD…", help="Names, path/to/file.py:MyMethod, both with :param=value, or `all` that are listed."),
    ],
    full: Annotated[bool, typer.Option("--full", help="On minicanvas itself instead of a tiny random model.")] = False,
) -> None:
    """Check that a method keeps the contract that tables rest on; what it breaks is told, with where and how to mend it.

    Seconds a method, on a tiny model of random weights; with --full up to a minute or two where a method trains. Exit status 1 if a check
    fails.

    Examples: `python -m bench check uce` · `python -m bench check my_method.py:MyMethod:strength=2` · `python -m bench check all --full`
    """
    variants = [parse_variant(whole_path(name)) for name in names if name != ALL]
    for name, _ in variants:
        registry.require(name)
    if ALL in names:
        variants += [(name, {}) for name in registry.methods()]
    for sentence in registry.refused():
        err.print(sentence, highlight=False, markup=False, soft_wrap=True)
    with err.status("loading torch and a model"):
        from bench.check.run import check as run
        from bench.check.run import failed, world_of
    broken = 0
    with world_of(full) as world:
        for name, given in variants:
            with err.status(f"checking {name}"):
                findings = run(name, given, world)
            _show(registry.short_name(name), findings)
            broken += bool(failed(findings))
    if broken:
        err.print(f"{broken} of {len(variants)} methods fail.", highlight=False)
        raise typer.Exit(1)


def _show(name: str, findings: list[Finding]) -> None:
    counts = [f"{sum(one.status == status for one in findings)} {status}" for status in COLOURS]
    out.print(f"{name}: {', '.join(counts)}", style="bold", highlight=False, markup=False)
    for one in findings:
        out.print(Text.assemble("  ", (f"{one.status:8}", COLOURS[one.status]), f" {one.check:21} {one.text}"), soft_wrap=True)
        if one.mend:
            out.print(f"{'':33}{one.mend}", highlight=False, markup=False, soft_wrap=True)
