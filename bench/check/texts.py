"""What a method tells the UNet: one `Cond` a text, of the form that the model's own have, made of that text alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.check.outcome import BrokenError, SkippedError
from bench.check.subject import Subject
from bench.check.world import CONCEPTS, STEPS
from bench.diffusion.text import PlainText
from bench.errors import BenchError, told
from bench.interfaces import Cond, Role, TextEdit

FORM = "Return one Cond a text: dataclasses.replace(cond, embeds=…) of what PlainText().encode(…) gives keeps all that it needs."


def texts(subject: Subject) -> None:
    """Of a text part; what is wrong here would show in pictures as something else."""
    seen = False
    for kind, erasure in subject.erasures().items():
        # With changed weights what a text becomes is theirs too: pictures alone tell.
        if erasure.text is not None and (erasure.weights is None or not erasure.weights.values):
            seen = True
            prompts = list(dict.fromkeys(request.prompt for request in subject.world.requests))
            for role, own in (("conditional", prompts), ("unconditional", [""])):
                try:
                    _check(subject, erasure.text, own, role, f"{type(erasure.text).__name__} for {CONCEPTS[kind][0]}")  # type: ignore[arg-type]
                except BrokenError:
                    subject.unsound = "What it tells the UNet is not as it must be."
                    raise
    if not seen:
        raise SkippedError("It edits no text.")


def _check(subject: Subject, part: TextEdit, prompts: Sequence[str], role: Role, name: str) -> None:
    model = subject.world.model
    plain = PlainText().encode(model, prompts, role, STEPS)
    try:
        found = part.encode(model, prompts, role, STEPS)
    except Exception as error:
        what = error if isinstance(error, BenchError) else told(error)
        raise BrokenError(f"{name} cannot encode {role} texts: {what}", "Mend what raises this.") from error
    if not isinstance(found, list | tuple) or len(found) != len(prompts) or not all(isinstance(one, Cond) for one in found):
        raise BrokenError(f"{name} gives {_kind_of(found)} for {len(prompts)} texts.", FORM)
    for own, usual in zip(found, plain, strict=True):
        _form(own, usual, name)
    if not all(map(_equal, found, part.encode(model, prompts, role, STEPS))):
        raise BrokenError(
            f"{name} gives other states for the same texts when asked again.",
            "Draw nothing in encode(): what a method draws it draws in fit(), from context.seed.",
        )
    alone = [one for prompt in prompts for one in part.encode(model, [prompt], role, STEPS)]
    if not all(map(_equal, found, alone)):
        raise BrokenError(
            f"{name} gives a text other states beside other texts than alone.", "Make each Cond of its own text: no mean or sum over texts."
        )


def _form(own: Cond, usual: Cond, name: str) -> None:
    _, length, width = usual.embeds.shape
    wanted = f"float32 [V, {length}, {width}]"
    if not isinstance(own.embeds, Tensor) or own.embeds.dim() != 3 or own.embeds.shape[1:] != usual.embeds.shape[1:] or not len(own.embeds):
        raise BrokenError(f"{name}: embeds are {_kind_of(own.embeds)}, not {wanted}.", FORM)
    if own.embeds.dtype != torch.float32:
        raise BrokenError(f"{name}: embeds are {_kind_of(own.embeds)}, not {wanted}.", "Cast what you compute back to float32.")
    if not own.embeds.isfinite().all():
        raise BrokenError(f"{name}: embeds are not finite.", "Look for a division by zero or an overflow.")
    at = own.variant_at
    if (
        not isinstance(at, Tensor)
        or at.dtype != torch.int64
        or at.shape != (STEPS,)
        or not (0 <= int(at.min()) <= int(at.max()) < len(own.embeds))
    ):
        raise BrokenError(f"{name}: variant_at is {_kind_of(at)}, not int64 [steps] of places in embeds.", FORM)
    if own.added.keys() != usual.added.keys():
        raise BrokenError(f"{name}: added has {sorted(own.added)}, the model's texts have {sorted(usual.added)}.", FORM)


def _kind_of(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    if isinstance(found, list | tuple):
        return f"{len(found)} of {', '.join(sorted({type(one).__name__ for one in found}))}"
    return f"a {type(found).__name__}"


def _equal(one: Cond, other: Cond) -> bool:
    own, others = (
        [cond.embeds, cond.variant_at, cond.adapter_scale, *(cond.added[key] for key in sorted(cond.added))] for cond in (one, other)
    )
    return len(own) == len(others) and all(map(torch.equal, own, others))
