"""What a fit must keep: the model, the recipe, its word on weights and parts."""

from __future__ import annotations

from dataclasses import is_dataclass

import torch
from safetensors.torch import load
from torch import Tensor

from bench.check.outcome import BrokenError, Check, SkippedError
from bench.check.subject import Subject, parts_of
from bench.check.world import CONCEPTS
from bench.erasure import pack
from bench.errors import BenchError, told
from bench.identity import MethodSpec
from bench.interfaces import Erasure, Weights
from bench.packed import Packed
from bench.plan import unsupported
from bench.types import KINDS, Target


def fits(subject: Subject) -> None:
    """One concept of each kind."""
    if not subject.kinds:
        raise SkippedError("It supports no kind of concept.")
    for kind in subject.kinds:
        concept = CONCEPTS[kind][0]
        try:
            erasure = subject.erasure(concept)
        except BenchError as error:
            if subject.files:
                example = f"{subject.name}:{subject.files[0]}=PATH"
                raise SkippedError(f"{error} It may need files: check {example}.") from error
            mend = f"Support it, or take {kind} out of card.supports."
            if subject.given_files and subject.world.random:
                mend = "If the file is for minicanvas's model and not for the tiny one: check --full."
            raise BrokenError(f"The fit on {concept} is refused: {error}", mend) from error
        except Exception as error:
            raise BrokenError(f"The fit on {concept} broke: {told(error)}.", "Mend what raises this.") from error
        for place, part, wanted in parts_of(erasure):
            if not isinstance(part, wanted):
                raise BrokenError(f"On {concept}, {place} is {type(part).__name__}.", f"It must be of {wanted.__name__} (bench.api).")


def model_after_fit(subject: Subject) -> None:
    """Everything that fits touched is as it was."""
    subject.erasures()
    left = subject.left_by_fit
    if not left:
        return
    if all(name.startswith("torch's") for name in left):
        raise BrokenError(
            f"fit() left changed: {_some(left)}.",
            "All methods of a run share the process: set nothing that is global, and draw from a torch.Generator of your own.",
        )
    raise BrokenError(
        f"fit() left changed in context.model: {_some(left)}.",
        "Train copies (torch.func.functional_call), swap weights with `with model.weights(…)`, and give new values in Weights.",
    )


def same_again(subject: Subject) -> None:
    """Two fits with the same seed, and other states of the global generators."""
    for kind, first in subject.erasures().items():
        concept = CONCEPTS[kind][0]
        one, other = _packed(first), _packed(subject.fit((concept,), salt=1))
        changed = [name for name, value in _tensors(one).items() if not _equal(value, _tensors(other).get(name))]
        changed += [] if _described(one) == _described(other) else ["fields of parts"]
        if changed:
            raise BrokenError(
                f"Two fits on {concept} with the same seed differ: {_some(changed)}.",
                "Draw from torch.Generator().manual_seed(context.seed), never from global state, time or the order of a set.",
            )


def weights(subject: Subject) -> None:
    """`row_wise` is what erasures are."""
    row_wise = subject.method().row_wise
    for kind, erasure in subject.erasures().items():
        concept = CONCEPTS[kind][0]
        if row_wise and erasure.weights is not None:
            raise BrokenError(
                f"The erasure of {concept} changes weights ({_some(list(erasure.weights.values))}), but row_wise is True.",
                "Let row_wise give False: its pictures then have UNet calls of their own.",
            )
        if not row_wise and erasure.weights is None:
            raise BrokenError(
                f"The erasure of {concept} leaves weights alone, but row_wise is False.", "Let row_wise give True: it is faster."
            )
        try:
            subject.try_weights(erasure)
        except BenchError as error:
            mend = "Name parameters as unet.named_parameters() does, behind “unet.”."
            raise BrokenError(f"The erasure of {concept}: {error}", mend) from error


def parts(subject: Subject) -> None:
    """Saved erasures can be read back with the classes that are named."""
    for kind, erasure in subject.erasures().items():
        for place, part, _ in parts_of(erasure):
            name = type(part).__name__
            if isinstance(part, Weights):
                continue
            if not is_dataclass(part):
                raise BrokenError(
                    f"{name}, the {place} for a {kind}, is no dataclass.", "Write @dataclass(frozen=True, eq=False) above it."
                )
            if type(part) not in subject.kind.parts:
                raise BrokenError(
                    f"{name}, the {place} for a {kind}, is not in {subject.kind.__name__}.parts, so that a saved erasure cannot be read.",
                    f"Write parts = ({name},).",
                )


def inputs(subject: Subject) -> None:
    """Digests of what fits read."""
    subject.erasures()
    assets = subject.world.context.assets
    for kind in subject.kinds:
        own = [CONCEPTS[kind][0]]
        found = subject.method().inputs(assets, own)
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise BrokenError(f"inputs() gives {found!r} for {own[0]}.", "Give texts: a name → the digest of a file.")
        if dict(subject.method().inputs(assets, own)) != dict(found):
            raise BrokenError(f"inputs() gives something else each time for {own[0]}.", "Give digests of contents.")
        if subject.asked_for_examples and "examples" not in found:
            raise BrokenError("fit() trains on context.examples, inputs() does not say so.", 'Add {"examples": assets.examples}.')


def kinds(subject: Subject) -> None:
    """What it does not support is a hole with a reason."""
    other = [kind for kind in KINDS if kind not in subject.kinds]
    if not other:
        raise SkippedError("It supports every kind.")
    spec = MethodSpec(subject.name, subject.name, 1, {}, subject.kind.card, True)
    for kind in other:
        if not unsupported(spec, Target((CONCEPTS[kind][0],))):
            raise BrokenError(f"A {kind} is planned, though card.supports is without it.", "Mend card.supports.")


def several(subject: Subject) -> None:
    """Two concepts in one erasure."""
    if subject.given_files:
        raise SkippedError("What it removes may be up to the file that was given.")
    singles = subject.erasures()
    if not any(parts_of(erasure) for erasure in singles.values()):
        raise SkippedError("Its erasures have no part.")
    alone = [_packed(erasure) for erasure in singles.values()]
    if len(alone) > 1 and _equal_packed(*alone):
        names = " and of ".join(str(CONCEPTS[kind][0]) for kind in singles)
        raise BrokenError(f"The erasures of {names} are the same.", "Let fit() use the `concepts` that it is given.")
    pair = tuple(CONCEPTS[kind][0] for kind in subject.kinds) if len(subject.kinds) > 1 else CONCEPTS[subject.kinds[0]]
    names = " and ".join(map(str, pair))
    try:
        both = subject.erasure(*pair)
    except Exception as error:
        raise BrokenError(
            f"{names} at once: {error if isinstance(error, BenchError) else told(error)}",
            "fit() gets all concepts that are to be removed together: one erasure removes them all.",
        ) from error
    if len(subject.kinds) == 1:
        alone.append(_packed(subject.erasure(pair[1])))
    if any(_equal_packed(_packed(both), one) for one in alone):
        raise BrokenError(f"{names} at once give the erasure of one of them.", "Use all of `concepts`, not the first.")


def continues(subject: Subject) -> None:
    """`fit_after` goes on."""
    if not subject.kind.continues():
        raise SkippedError("It does not go on from an earlier erasure (fit_after).")
    kind, start = next(iter(subject.erasures().items()))
    first, second = CONCEPTS[kind]
    left = len(subject.left_by_fit)
    erasure = subject.fit((second,), after=start)
    if len(subject.left_by_fit) > left:
        raise BrokenError(f"fit_after() left changed in context.model: {_some(subject.left_by_fit[left:])}.", "As in fit(): train copies.")
    if not isinstance(erasure, Erasure) or _equal_packed(_packed(erasure), _packed(start)):
        raise BrokenError(f"fit_after() for {second} gives the erasure of {first} back.", "Go on from `start` and remove `concepts` too.")


def _some(names: list[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _packed(erasure: Erasure) -> Packed:
    try:
        return pack(erasure)
    except Exception as error:
        raise SkippedError("Its erasures cannot be saved.") from error


def _tensors(packed: Packed) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load(packed.tensors)
    return found


def _described(packed: Packed) -> dict[str, object]:
    return {name: value for name, value in packed.index.items() if name != "notes"}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _equal_packed(one: Packed, other: Packed) -> bool:
    return one.tensors == other.tensors and _described(one) == _described(other)


CHECKS = (
    Check("fits", "It makes an erasure of a concept of each kind that it supports.", fits),
    Check("model-after-fit", "A fit leaves the base model bit for bit as it was.", model_after_fit),
    Check("deterministic", "Two fits with one seed are the same.", same_again),
    Check("weights", "row_wise says whether its erasures change weights, and they are the model's.", weights),
    Check("parts", "Every part of its erasures is in `parts`.", parts),
    Check("inputs", "inputs() gives digests of what fits read.", inputs),
    Check("kinds", "Other kinds of concepts are holes in the table, with the reason.", kinds),
    Check("several", "One erasure removes several concepts.", several),
    Check("continues", "fit_after() goes on from an earlier erasure.", continues),
)
