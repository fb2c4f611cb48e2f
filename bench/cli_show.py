"""Commands that tell what there is: `list`, `show`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from bench import registry
from bench.cli_options import out
from bench.errors import unknown

Things = Literal["methods", "suites", "attacks", "classifiers"]


def list_(what: Annotated[Things, typer.Argument(help="What to list.")] = "methods") -> None:
    """List what there is, one line each."""
    tables: dict[Things, Callable[[], dict[str, str]]] = {
        "methods": registry.methods, "suites": lambda: registry.SUITES, "attacks": lambda: registry.ATTACKS,
        "classifiers": lambda: registry.CLASSIFIERS,
    }  # fmt: skip
    found = tables[what]()
    if not found:
        out.print(f"There are no {what} yet.")
    for name, module in found.items():
        out.print(f"[bold]{name:18}[/bold] {registry.summary(module)}", highlight=False)


def show(name: Annotated[str, typer.Argument(help="A method or a suite.")]) -> None:
    """Show a method's parameters and citation, or a suite's concepts and presets."""
    if name.partition("@")[0] in registry.SUITES:
        _show_suite(registry.suite(name))
        return
    known = registry.methods()
    if name not in known:
        raise unknown("method or suite", name, [*known, *registry.SUITES])
    kind = registry.method(name)
    out.print(f"[bold]{name}[/bold] (version {kind.version}): {registry.summary(known[name])}")
    out.print(f"{kind.card.title}, {kind.card.paper or 'no paper'}; removes {' and '.join(f'{k}s' for k in kind.card.supports)}")
    out.print(inspect.getdoc(kind) or "", markup=False, highlight=False)
    if kind.card.notes:
        out.print(kind.card.notes)
    table = Table("parameter", "type", "default", "meaning")
    for key, field in kind.Config.model_fields.items():
        kind_name = getattr(field.annotation, "__name__", "") if field.annotation in (int, float, str, bool) else str(field.annotation)
        table.add_row(key, kind_name.replace("typing.", ""), str(field.default), field.description or "")
    if kind.Config.model_fields:
        out.print(table)
    for suite_name in registry.SUITES:
        here = registry.suite(suite_name).method_settings.get(name)
        if here:
            out.print(f"On {suite_name}, unless set: {', '.join(f'{key}={value}' for key, value in here.items())}")
    if kind.card.bibtex:
        out.print(kind.card.bibtex, markup=False, highlight=False)


def _show_suite(suite: Any) -> None:
    out.print(f"[bold]{suite.name}@{suite.profile}-v{suite.version}[/bold], guidance {suite.guidance_scale}, {suite.size[0]} px")
    out.print(f"styles: {', '.join(suite.styles)}\nobjects: {', '.join(suite.objects)}\nprompt: {suite.prompt('STYLE', 'OBJECT')}")
    table = Table("preset", "what", "concepts", "seeds", "steps")
    for key, preset in suite.presets.items():
        table.add_row(key, preset.description, ", ".join(preset.concepts), str(preset.seeds), str(preset.steps))
    out.print(table)
    for kind, blocks in suite.assets.hookpoints.items():
        out.print(f"hook points for {kind}s: {', '.join(blocks)}", highlight=False)
    for method, values in suite.method_settings.items():
        out.print(f"{method} here: {', '.join(f'{key}={value}' for key, value in values.items())}")
    tuned = {method: found for method in registry.methods() if (found := suite.tuned(method))}
    for method, found in tuned.items():
        budget = f"{found.budget['settings']} settings, {found.budget['pictures']} pictures a concept"
        out.print(f"{method} is tuned for {len(found.concepts)} concepts ({budget})")
