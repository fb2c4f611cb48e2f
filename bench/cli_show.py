"""Commands that tell what there is: `list`, `show`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from bench import registry
from bench.cards import cards as all_cards
from bench.cards import cited, parameters_of, settings_here
from bench.cli_options import err, out
from bench.config import parse_variant
from bench.errors import BenchError, unknown
from bench.types import Target

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
    broken = registry.refused() if what == "methods" else []
    for name, module in found.items():
        try:
            text = _summary(what, name, module)
            out.print(f"[bold]{name:18}[/bold] {text}", highlight=False, soft_wrap=True)
        except BenchError as error:
            broken.append(str(error))
    if what == "attacks":
        for name, own in registry.ATTACK_SETS.items():
            out.print(f"[bold]{name:18}[/bold] A set, for the robustness column: {', '.join(own)}.", highlight=False, soft_wrap=True)
    for sentence in broken:
        err.print(sentence, highlight=False, markup=False, soft_wrap=True)


def cards() -> None:
    """Print all methods and attacks with their parameters as one page of Markdown, as docs/method-cards.md has it."""
    print(all_cards(), end="")


def _summary(what: Things, name: str, module: str) -> str:
    """One line."""
    if what == "methods":
        return registry.method_summary(name)
    return registry.class_summary(module) if what == "attacks" else registry.summary(module)


def show(name: Annotated[str, typer.Argument(help="A method, path/to/file.py:MyMethod, an attack, or a suite.")]) -> None:
    """Show a method's or an attack's parameters and citation, or a suite's concepts and presets."""
    if name.partition("@")[0] in registry.SUITES or name.endswith(".toml"):
        _show_suite(registry.suite(name))
        return
    if name in registry.ATTACKS:
        _show_attack(name)
        return
    if name in registry.ATTACK_SETS:
        out.print(f"[bold]{name}[/bold]: a fixed set of attacks; a goal counts as erased only if it survives each of them", highlight=False)
        out.print(", ".join(registry.ATTACK_SETS[name]), highlight=False)
        return
    known = registry.methods()
    bare, given = parse_variant(name)
    if given:
        raise BenchError(f"show takes a name without parameters: python -m bench show {bare}.")
    if ".py" not in name and name not in known:
        raise unknown("method, attack or suite", name, [*known, *registry.ATTACKS, *registry.ATTACK_SETS, *registry.SUITES])
    kind = registry.method(name)
    out.print(f"[bold]{registry.short_name(name)}[/bold] (version {kind.version}): {registry.summary(kind.__module__)}")
    out.print(f"{kind.card.title}, {cited(kind.card)}; removes {' and '.join(f'{k}s' for k in kind.card.supports)}")
    out.print(inspect.cleandoc(kind.__doc__ or ""), markup=False, highlight=False)
    if kind.card.notes:
        out.print(kind.card.notes)
    _show_parameters(kind)
    for suite, values in settings_here(name).items():
        out.print(f"On {suite}, unless set: {values}")
    if kind.card.bibtex:
        out.print(kind.card.bibtex, markup=False, highlight=False)


def _show_parameters(kind: Any) -> None:
    table = Table("parameter", "type", "default", "meaning")
    for parameter in parameters_of(kind):
        table.add_row(*parameter)
    if table.row_count:
        out.print(table)


def _show_attack(name: str) -> None:
    kind = registry.attack(name)
    out.print(f"[bold]{name}[/bold] (version {kind.version}, {kind.access}): {kind.card.title}, {kind.card.paper or 'no paper'}")
    out.print(inspect.getdoc(kind) or "", markup=False, highlight=False)
    _show_parameters(kind)
    for budget, values in kind.budgets.items():
        made = kind(kind.Config.model_validate(dict(values)))
        own = ", ".join(f"{key}={value}" for key, value in values.items()) or "the defaults"
        out.print(f"budget {budget}: {own}; {made.gradient_steps} gradient steps and {made.judged} pictures a goal at most")
    if kind.card.bibtex:
        out.print(kind.card.bibtex, markup=False, highlight=False)


def _show_suite(suite: Any) -> None:
    out.print(f"[bold]{suite.name}@{suite.profile}-v{suite.version}[/bold], guidance {suite.guidance_scale}, {suite.size[0]} px")
    out.print(f"styles: {', '.join(suite.styles)}\nobjects: {', '.join(suite.objects)}\nprompt: {suite.prompt('STYLE', 'OBJECT')}")
    for line in _decisions(suite):
        out.print(line, highlight=False)
    table = Table("preset", "what", "concepts", "pictures a target", "seeds", "steps")
    targets = [Target((concept,)) for concept in suite.concepts]
    for key, preset in suite.presets.items():
        counts = sorted({len(suite.requests(target, preset)) for target in targets})
        among = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        table.add_row(key, preset.description, ", ".join(preset.concepts), among, str(preset.seeds), str(preset.steps))
    out.print(table)
    for kind, blocks in suite.assets.hookpoints.items():
        out.print(f"hook points for {kind}s: {', '.join(blocks)}", highlight=False)
    for method, values in suite.method_settings.items():
        out.print(f"{method} here: {', '.join(f'{key}={value}' for key, value in values.items())}")
    tuned = {method: found for method in registry.methods() if (found := suite.tuned(method))}
    for method, found in tuned.items():
        budget = f"{found.budget['settings']} settings, {found.budget['pictures']} pictures a concept"
        out.print(f"{method} is tuned for {len(found.concepts)} concepts ({budget})")


def _decisions(suite: Any) -> list[str]:
    """What protocols leave open or do differently, as this one has it."""
    rows = dict.fromkeys(style for style, _ in suite.cells if style not in suite.styles)
    beside = [f"{suite.prompt(row, 'OBJECT')} ({'no style' if not row else f'{row}, which is no concept'})" for row in rows]
    seeds = ", ".join(map(str, suite.seeds)) or "1, 2, …"
    noise = "each picture its own" if suite.noise == "cell" else "the same for all pictures of a seed"
    cra = "pictures prompted without a style, where a style is erased" if suite.rules.style_cra_plain else "all pictures of the other kind"
    target = "those prompted with the target among them" if suite.rules.cra_includes_target else "without those prompted with the target"
    codec = "nothing" if suite.codec == "none" else f"{suite.codec}, as Pillow saves it by default"
    return [
        *(f"also prompted: {text}" for text in beside), f"seeds: {seeds}; initial noise: {noise}; between sampler and judges: {codec}",
        f"CRA: {cra}, {target}", f"distances: {', '.join(f'{one.key} ({one.network})' for one in suite.distances)}",
    ]  # fmt: skip
