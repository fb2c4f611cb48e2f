"""What is sampled: rows, their conditions, and all that can be wrong with them before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from bench.diffusion.guidance import ClassifierFree, Unguided
from bench.diffusion.model import DiffusionModel
from bench.diffusion.solvers import Solver
from bench.diffusion.text import PlainText
from bench.errors import BenchError, unknown
from bench.interfaces import ActivationEdit, Cond, Erasure, Guidance, TextEdit
from bench.types import GenerationRequest

_PLAIN_TEXT, _PLAIN_GUIDANCE, _UNGUIDED = PlainText(), ClassifierFree(), Unguided()


@dataclass(frozen=True, eq=False)
class Row:
    """One picture to sample. The erasure's weights, if any, must be swapped in by the caller (`DiffusionModel.weights`)."""

    request: GenerationRequest
    erasure: Erasure

    @property
    def guided(self) -> bool:
        """Whether the unconditional text counts."""
        return plain_slots(self.request.guidance_scale) > 1

    @property
    def guidance(self) -> Guidance:
        """How its conditions are combined."""
        return (self.erasure.guidance or _PLAIN_GUIDANCE) if self.guided else _UNGUIDED

    @property
    def text(self) -> TextEdit:
        """How its texts are encoded."""
        return self.erasure.text or _PLAIN_TEXT

    @property
    def roles(self) -> tuple[int, ...]:
        """Of its conditions: 0 unconditional, 1 conditional, 2 and up the guidance's extra texts. Without guidance 1 alone."""
        return tuple(range(2 + len(self.guidance.extra_texts))) if self.guided else (1,)

    @property
    def slots(self) -> int:
        """UNet slots a step."""
        return len(self.roles)


def plain_slots(guidance_scale: float) -> int:
    """UNet slots a step of an un-edited picture: without guidance the unconditional text is not asked, as in diffusers' pipelines."""
    return 2 if guidance_scale > 1 else 1


def check(model: DiffusionModel, rows: Sequence[Row], solver: Solver, slots: int) -> None:
    """BenchError for a row that needs more slots than a call has, or an edit that does not fit the model, the guidance or the steps."""
    for row in rows:
        _check_guidance(row)
    widest = max(row.slots for row in rows)
    if widest > slots:
        raise BenchError(f"A picture of this method needs {widest} UNet slots, a call has {slots}: raise --batch-size.")
    blocks = {name for name, _ in model.unet.named_modules() if name}
    for steps in {row.request.steps for row in rows}:
        for edit in {id(edit): edit for row in rows if row.request.steps == steps for edit in row.erasure.activations}.values():
            for name in edit.hookpoints:
                if name not in blocks:
                    raise unknown("block of the UNet", name, blocks)
            _check_timesteps(edit, solver.timesteps(steps))


def _check_guidance(row: Row) -> None:
    """Refuse an edit that would do nothing, as its row has one condition."""
    text, guidance = row.erasure.text, row.erasure.guidance
    idle = guidance if guidance is not None else text if text is not None and text.unconditional_only else None
    if idle is not None and not row.guided:
        raise BenchError(
            f"{type(idle).__name__} acts through guidance, and at a guidance scale of {row.request.guidance_scale:g} there is none:"
            " leave this method out, or sample with a scale above 1."
        )


def _check_timesteps(edit: ActivationEdit, timesteps: Tensor) -> None:
    """Refuse an edit whose tables were made for timesteps far from those of the sampling."""
    if edit.timesteps is None:
        return
    own = edit.timesteps.cpu().sort().values
    reach = float(own.diff().max()) / 2 if len(own) > 1 else 0.0
    distance, worst = (timesteps[:, None] - own).abs().min(1).values.max(0)
    if float(distance) > reach:
        raise BenchError(
            f"The {type(edit).__name__} edit has statistics of {len(own)} steps, none near timestep {int(timesteps[worst])} of these"
            f" {len(timesteps)}: gather them for {len(timesteps)} steps (python -m bench train-sae --help) or sample with {len(own)}."
        )


def encode(model: DiffusionModel, rows: Sequence[Row]) -> list[list[Cond]]:
    """The conditions of each row, as `Row.roles`. Each distinct text is encoded once per edit and step count."""
    groups: dict[_Encoding, list[Row]] = {}
    for row in rows:
        groups.setdefault(_encoding(row), []).append(row)
    tables: dict[_Encoding, tuple[list[Cond], dict[str, Cond], list[Cond]]] = {}
    for key, own in groups.items():
        edit, steps, extra = own[0].text, own[0].request.steps, own[0].guidance.extra_texts
        prompts = list(dict.fromkeys(row.request.prompt for row in own))
        unconditional = edit.encode(model, [""], "unconditional", steps) if own[0].guided else []
        conditional = edit.encode(model, prompts, "conditional", steps)
        extra_conds = edit.encode(model, list(extra), "extra", steps) if extra else []
        if any(set(cond.added) != set(model.added) for cond in [*unconditional, *conditional, *extra_conds]):
            raise BenchError(
                f"{type(edit).__name__} loses {' and '.join(model.added)}, which this model needs beside the text's states: let it change"
                " conditions of PlainText with dataclasses.replace."
            )
        tables[key] = unconditional, dict(zip(prompts, conditional, strict=True)), extra_conds
    found = []
    for row in rows:
        unconditional, by_prompt, extra_conds = tables[_encoding(row)]
        prompt = by_prompt[row.request.prompt]
        found.append([*_as_strong(unconditional, prompt), prompt, *_as_strong(extra_conds, prompt)])
    return found


def _as_strong(conditions: list[Cond], prompt: Cond) -> list[Cond]:
    """Those that do not say how strongly adapters act take it from the prompt."""
    if not len(prompt.adapter_scale):
        return conditions
    return [cond if len(cond.adapter_scale) else replace(cond, adapter_scale=prompt.adapter_scale) for cond in conditions]


_Encoding = tuple[int, tuple[str, ...], int, bool]


def _encoding(row: Row) -> _Encoding:
    return id(row.text), row.guidance.extra_texts, row.request.steps, row.guided
