"""What a method says of itself: card, parameters, parts. No model is needed."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from typing import get_args

from bench.check import bibtex
from bench.check.outcome import BrokenError, Check, SkippedError
from bench.check.subject import Subject
from bench.config import method_config
from bench.errors import BenchError
from bench.interfaces import MethodConfig
from bench.types import KINDS, Card

CITED = ("author", "title", "year")


def card(subject: Subject) -> None:
    """Title, paper, citation, kinds."""
    found = subject.kind.card
    where = f"{subject.kind.__name__}.card"
    if not isinstance(found, Card):
        raise BrokenError(f"{where} is {found!r}.", 'Write card = Card(title=…, paper=…, bibtex=…, supports=("style", "object")).')
    cited = () if found.control or found.cite_instead else ("paper", "bibtex")
    lacking = [name for name in ("title", *cited) if not getattr(found, name).strip()]
    if lacking:
        mend = "Fill it in: tables cite it. Only a control, or a method that says whom to cite_instead, may have no paper."
        raise BrokenError(f"{where} has no {' and no '.join(lacking)}.", mend)
    wrong = [kind for kind in found.supports if kind not in KINDS]
    if wrong or not found.supports:
        raise BrokenError(f"{where}.supports is {found.supports!r}.", f"Name kinds of concepts in a tuple: {', '.join(KINDS)}.")
    if not isinstance(subject.kind.version, int) or subject.kind.version < 1:
        raise BrokenError(f"version is {subject.kind.version!r}.", "It is a whole number from 1, raised whenever pictures would change.")


def citation(subject: Subject) -> None:
    """The BibTeX can be printed in a paper."""
    text = getattr(subject.kind.card, "bibtex", "")
    where = f"{subject.kind.__name__}.card.bibtex"
    if not text.strip():
        raise SkippedError("The card has no BibTeX.")
    try:
        entries = bibtex.parse(text)
    except ValueError as error:
        raise BrokenError(f"{where}: {error}.", "Write it as @type{key, title = {…}, author = {…}, year = {…}}.") from error
    for entry in entries:
        lacking = [name for name in CITED if not entry.fields.get(name)]
        if lacking:
            raise BrokenError(f"{where}: {entry.key} has no {' and no '.join(lacking)}.", "Add what is missing.")


def parameters(subject: Subject) -> None:
    """Every field can be left out, is told of, and comes back from a file as it was."""
    kind = subject.kind.Config
    if not (isinstance(kind, type) and issubclass(kind, MethodConfig)):
        raise BrokenError(f"Config is {kind!r}.", "Make it a subclass of MethodConfig.")
    for name, field in kind.model_fields.items():
        where = f"{kind.__name__}.{name}"
        if field.is_required():
            raise BrokenError(f"{where} has no default.", "Give Field a default: a method must run without parameters.")
        if not (field.description or "").strip():
            raise BrokenError(f"{where} has no description.", "Write Field(…, description=…): `show` prints it.")
        if Path in (field.annotation, *get_args(field.annotation)) and field.annotation != Path | None:
            raise BrokenError(f"{where} is of type {field.annotation}.", "Make it Path | None: only such paths stay out of identities.")
    config = subject.config
    if kind.model_validate(config.model_dump(mode="json")) != config:
        raise BrokenError(
            f"{kind.__name__} is another one after it was written as JSON and read.", "Use texts, numbers, truth values, tuples."
        )


def tuning(subject: Subject) -> None:
    """Both grids name parameters and values that they can have."""
    if not issubclass(subject.kind.Config, MethodConfig):
        raise SkippedError("Its Config is none.")
    grids = {"tuning": subject.kind.tuning, "published_tuning": subject.kind.published_tuning}
    if not any(grids.values()):
        raise SkippedError("It declares nothing to tune.")
    for grid, values_of in grids.items():
        for name, values in values_of.items():
            for value in values:
                try:
                    method_config(subject.name, subject.kind.Config, {**subject.given, name: value})
                except BenchError as error:
                    raise BrokenError(f"{grid}: {error}", f"Mend {subject.kind.__name__}.{grid}.") from error


def pickles(subject: Subject) -> None:
    """Processes can hand it to each other."""
    things = {subject.kind.__name__: subject.kind, subject.kind.Config.__name__: subject.config}
    with suppress(SkippedError):
        things |= {f"the erasure of a {kind}": erasure for kind, erasure in subject.erasures().items()}
    for name, thing in things.items():
        try:
            pickle.loads(pickle.dumps(thing))
        except Exception as error:  # whatever it is made of raises its own
            raise BrokenError(
                f"{name} cannot be pickled: {error}.",
                "Define classes at the top of a module, and keep functions and open files out of fields.",
            ) from error


CHECKS = (
    Check("card", "The card says who, what for and whom to cite.", card),
    Check("bibtex", "The citation is BibTeX with author, title and year.", citation),
    Check("parameters", "Every parameter has a default, a description, and survives JSON.", parameters),
    Check("tuning", "Its grids name parameters and values that they can have.", tuning),
    Check("pickles", "Class, configuration and erasures can be pickled.", pickles),
)
