"""What sampling with a method's erasures must keep: a picture is a function of its request and erasure alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.check.outcome import BrokenError, Check, SkippedError
from bench.check.quiet import QuietProbe
from bench.check.subject import Subject, parts_of
from bench.check.texts import texts
from bench.check.world import CONCEPTS
from bench.diffusion.rows import Row
from bench.erasure import load_erasure, pack
from bench.errors import BenchError, told
from bench.interfaces import Erasure
from bench.types import GenerationRequest


def samples(subject: Subject) -> None:
    """Pictures are made at all."""
    subject.require_sound()
    for kind, erasure in subject.erasures().items():
        concept = CONCEPTS[kind][0]
        try:
            subject.try_weights(erasure)
        except BenchError as error:
            raise SkippedError("Its weights are not the model's.") from error
        try:
            latents = subject.latents(kind)
        except Exception as error:
            what = error if isinstance(error, BenchError) else told(error)
            raise BrokenError(f"Sampling with {concept} erased broke: {what}", "Mend what raises this.") from error
        if not latents.isfinite().all():
            subject.unsound = "Its pictures are not finite."
            raise BrokenError(f"A picture with {concept} erased is not finite.", "Look for a division by zero or an overflow in its parts.")


def acts(subject: Subject) -> None:
    """It does something."""
    if subject.kind.card.control:
        raise SkippedError("It is a control, which may change nothing.")
    for kind, (erasure, latents) in subject.pictures().items():
        concept = CONCEPTS[kind][0]
        if not parts_of(erasure):
            raise BrokenError(
                f"The erasure of {concept} changes nothing: it has no part.",
                "Put what it does into Erasure(text=…, weights=…, activations=…, guidance=…); only a control may do nothing.",
            )
        unlike = (latents != subject.world.base).flatten(1).any(1)
        if not unlike.any():
            _tell_idle(subject, erasure, str(concept))
        only_edits = all(place == "activations" for place, _, _ in parts_of(erasure))
        if only_edits and not (subject.world.sample(subject.rows(erasure)).first_edit[unlike] >= 0).any():
            raise BrokenError(f"The edits for {concept} change a block's output in place.", "Let edit() return a new tensor.")


def _tell_idle(subject: Subject, erasure: Erasure, concept: str) -> None:
    only_quiet = all(getattr(part, "quiet_is_identity", False) for _, part, _ in parts_of(erasure))
    if only_quiet and subject.world.random:
        raise SkippedError(f"Its detector for {concept} fires in no picture of random weights: see --full.")
    names = ", ".join(type(part).__name__ for _, part, _ in parts_of(erasure))
    raise BrokenError(
        f"The erasure of {concept} changes nothing: every picture with {names} is the unedited model's, bit for bit.",
        "Look whether fit() puts what it found into the part, and whether the part uses it.",
    )


def model_after_sampling(subject: Subject) -> None:
    """Parts touch no network."""
    subject.pictures()
    left = list(dict.fromkeys(subject.left_by_sampling))
    if left:
        raise BrokenError(
            f"Sampling left changed in the model: {', '.join(left[:3])}{' …' if left[3:] else ''}.",
            "Parts may read the model, never write to it; changed weights belong into Weights.",
        )


def neighbours(subject: Subject) -> None:
    """The same bits at other places, alone, and beside rows of another erasure of the method and of the unedited model."""
    for kind, (erasure, latents) in subject.pictures().items():
        rows = subject.rows(erasure)
        _same(subject, rows[::-1], latents.flip(0), f"Pictures with {CONCEPTS[kind][0]} erased, sampled in another order,")
        _same(subject, rows[-1:], latents[-1:], f"Pictures with {CONCEPTS[kind][0]} erased, sampled alone,")
        if erasure.weights is None:
            beside = _mixed(subject, erasure, CONCEPTS[kind][1])
            own = [row.erasure is erasure for row in beside]
            _same(subject, beside, latents, f"Pictures with {CONCEPTS[kind][0]} erased, sampled beside others,", own)


def _same(subject: Subject, rows: Sequence[Row], wanted: Tensor, what: str, own: Sequence[bool] | None = None) -> None:
    found = subject.sample(rows)
    found = found if own is None else found[torch.tensor(own)]
    if not torch.equal(found, wanted):
        raise BrokenError(
            f"{what} have other bits.",
            "Compute every slot from its own input: no mean, sum, sort or random draw over slots or rows; draw from Slots.key,"
            " keep memory in state, and let `key` of a Guidance and `bank` of an edit tell apart what may not be combined.",
        )


def _mixed(subject: Subject, erasure: Erasure, other: object) -> list[Row]:
    """Each request under the unedited model, the erasure and one of another concept, in turn."""
    second = subject.erasure(other)  # type: ignore[arg-type]
    return [Row(request, one) for request in subject.world.requests for one in (Erasure(), erasure, second)]


def row_wise(subject: Subject) -> None:
    """Rows of others do not notice."""
    others, wanted = subject.world.others
    for kind, (erasure, _) in subject.pictures().items():
        if erasure.weights is not None:
            raise SkippedError("It changes weights: its pictures have UNet calls of their own.")
        own = subject.rows(erasure)
        mixed = [row for place, other in enumerate(others) for row in (own[place % len(own)], other)]
        changed = (subject.sample(mixed)[1::2] != wanted).flatten(1).any(1).nonzero().flatten().tolist()
        if changed:
            names = [" and ".join(type(part).__name__ for _, part, _ in parts_of(others[place].erasure)) or "no edit" for place in changed]
            raise BrokenError(
                f"Beside pictures with {CONCEPTS[kind][0]} erased, other pictures have other bits"
                f" (those with {', '.join(dict.fromkeys(names))}).",
                "Let edit() give x_out back where Slots.which is −1, and change nothing in place.",
            )


def quiet(subject: Subject) -> None:
    """Where `detect` says no, `edit` is the identity, and shared trajectories are exact."""
    seen = 0
    for kind, (erasure, latents) in subject.pictures().items():
        edits = [edit for edit in erasure.activations if edit.quiet_is_identity]
        seen += len(edits)
        for edit in edits:
            probe = QuietProbe(edit, subject.world)
            subject.sample(subject.rows(replace(erasure, activations=())), probes=[probe])
            if probe.broken:
                raise BrokenError(
                    f"{type(edit).__name__} for {CONCEPTS[kind][0]} edits where detect() is False: {probe.broken}.",
                    "Let detect() be True wherever edit() might change a bit, or quiet_is_identity be False.",
                )
        if edits and erasure.weights is None:
            both = [row for request in subject.world.requests for row in (Row(request, Erasure()), Row(request, erasure))]
            if not torch.equal(subject.sample(both, share=True)[1::2], latents):
                raise BrokenError(
                    f"Pictures with {CONCEPTS[kind][0]} erased that begin as the unedited ones end otherwise.",
                    "detect() must be True at the first step at which edit() or its state changes anything.",
                )
    if not seen:
        raise SkippedError("It has no edit that is quiet.")


def labels(subject: Subject) -> None:
    """Only prompts count."""
    for kind, (erasure, latents) in subject.pictures().items():
        renamed: list[GenerationRequest] = [replace(one, style="pop", object="house") for one in subject.world.requests]
        if not torch.equal(subject.sample(subject.rows(erasure, renamed)), latents):
            raise BrokenError(
                f"With {CONCEPTS[kind][0]} erased, the same prompts with other labels give other pictures.",
                "Labels are for the judges alone: look at the texts that encode() is given.",
            )


def saves(subject: Subject) -> None:
    """To files and back."""
    for kind, (erasure, latents) in subject.pictures().items():
        own = [part for place, part, _ in parts_of(erasure) if place != "weights"]
        if not all(is_dataclass(part) for part in own):
            raise SkippedError("Its parts are no dataclasses.")
        with tempfile.TemporaryDirectory() as folder:
            try:
                pack(erasure).save(Path(folder))
                again, _ = load_erasure(Path(folder), tuple(map(type, own)), subject.world.model.device)
            except Exception as error:
                raise BrokenError(
                    f"The erasure of {CONCEPTS[kind][0]} cannot be saved and read: {told(error)}.",
                    "Fields of parts are tensors, texts, numbers, truth values or tuples of these; notes are JSON.",
                ) from error
            if not torch.equal(subject.sample(subject.rows(again)), latents):
                raise BrokenError(
                    f"Saved and read again, the erasure of {CONCEPTS[kind][0]} gives other pictures.",
                    "Keep everything that a part needs in its fields.",
                )


def precision(subject: Subject) -> None:
    """Runs choose bfloat16 where it is faster."""
    for kind, (erasure, _) in subject.pictures().items():
        try:
            latents = subject.sample(subject.rows(erasure), dtype=torch.bfloat16)
        except Exception as error:
            what = error if isinstance(error, BenchError) else told(error)
            raise BrokenError(
                f"In bfloat16, sampling with {CONCEPTS[kind][0]} erased broke: {what}", "Cast to the dtype of x_out."
            ) from error
        if not latents.isfinite().all():
            raise BrokenError(
                f"In bfloat16, a picture with {CONCEPTS[kind][0]} erased is not finite.", "Compute in float32 and cast the result."
            )


CHECKS = (
    Check("texts", "What it tells the UNet of a text has the right form, and is of that text alone.", texts),
    Check("samples", "Pictures can be sampled with its erasures.", samples),
    Check("acts", "It changes pictures.", acts),
    Check("model-after-sampling", "Sampling leaves the base model bit for bit as it was.", model_after_sampling),
    Check("neighbours", "A picture is the same at any place in a call, beside any others.", neighbours),
    Check("row-wise", "Pictures of others are the same beside its own.", row_wise),
    Check("quiet", "Where its detector is silent its edit is the identity.", quiet),
    Check("labels", "It sees prompts, never labels.", labels),
    Check("saves", "A saved erasure gives the same pictures.", saves),
    Check("precision", "It samples in bfloat16 too.", precision),
)
