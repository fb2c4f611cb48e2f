"""Methods and attacks as pages of documentation: docs/method-cards.md is what `python -m bench cards` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench import registry

HEAD = """# Method and attack cards

Printed by `python -m bench cards`, from the classes themselves; `python -m bench show NAME` prints one of them in a terminal, plug-ins
too. What each does otherwise than its paper is in [methods.md](methods.md) and [attacks.md](attacks.md).
"""


class Parameter(NamedTuple):
    """One of a method's or an attack's, as text."""

    name: str
    kind: str
    default: str
    meaning: str


def parameters_of(kind: Any) -> list[Parameter]:
    """Those of its configuration, in their order."""
    return [
        Parameter(name, _type_name(field.annotation), str(field.default), field.description or "")
        for name, field in kind.Config.model_fields.items()
    ]


def settings_here(name: str) -> dict[str, str]:
    """By suite, the parameters of a method that its model needs to differ from the defaults."""
    found = {suite: registry.suite(suite).method_settings.get(name, {}) for suite in registry.SUITES}
    return {suite: ", ".join(f"{key}={value}" for key, value in values.items()) for suite, values in found.items() if values}


def cited(card: Any) -> str:
    """The paper, or whom else to cite."""
    return card.paper or (f"cite {card.cite_instead}" if card.cite_instead else "no paper")


def cards() -> str:
    """Markdown of all methods of this project and all attacks, by name. Plug-ins have `show`."""
    own = {name: module for name, module in registry.methods().items() if module.startswith("methods.")}
    methods = [line for name in sorted(own) for line in _method(name, own[name])]
    attacks = [line for name in sorted(registry.ATTACKS) for line in _attack(name)]
    return "\n\n".join([HEAD.rstrip(), "## Methods", *methods, "## Attacks", *attacks]) + "\n"


def _method(name: str, module: str) -> Iterator[str]:
    kind = registry.method(name)
    yield f"### `{name}`"
    removes = " and ".join(f"{supported}s" for supported in kind.card.supports)
    yield f"**{kind.card.title}**, {_linked(cited(kind.card))}. Version {kind.version}; removes {removes}."
    yield registry.summary(module)
    yield from _body(kind)
    for suite, values in settings_here(name).items():
        yield f"On {suite}, unless set: `{values}`."


def _attack(name: str) -> Iterator[str]:
    kind = registry.attack(name)
    yield f"### `{name}`"
    yield f"**{kind.card.title}**, {_linked(cited(kind.card))}. Version {kind.version}; {kind.access}."
    yield from _body(kind)
    for budget, values in kind.budgets.items():
        made = kind(kind.Config.model_validate(dict(values)))
        own = ", ".join(f"{key}={value}" for key, value in values.items())
        text = f" (`{own}`)" if own else ""
        yield f"Budget `{budget}`{text}: at most {made.gradient_steps:,} gradient steps and {made.judged:,} judged pictures a goal."


def _body(kind: Any) -> Iterator[str]:
    told = inspect.cleandoc(kind.__doc__ or "")
    if told:
        yield told
    if kind.card.notes:
        yield kind.card.notes
    rows = parameters_of(kind)
    if rows:
        lines = [["parameter", "type", "default", "meaning"], ["---"] * 4]
        lines += [[f"`{row.name}`", *(text.replace("|", "\\|") for text in row[1:])] for row in rows]
        yield "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _linked(text: str) -> str:
    return f"[{text}](https://arxiv.org/abs/{text.removeprefix('arXiv:')})" if text.startswith("arXiv:") else text


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if annotation in (int, float, str, bool) else str(annotation)
    return name.replace("typing.", "").replace("pathlib.", "").replace("collections.abc.", "")
