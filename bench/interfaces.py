"""The places where a method can act on a denoising step, and what a method is.

    prompt → text states → UNet(weights, activations) → guidance → scheduler step
             TextEdit       Weights   ActivationEdit     Guidance

R rows are pictures being sampled; row r has K_r conditions (1 without guidance, 2 with, 3 for SLD), S = Σ K_r UNet slots a call.
Everything but changed weights is row-wise: the rows of one call may belong to different methods, concepts and prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, NoReturn, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bench.errors import BenchError
from bench.types import Assets, Card, Concept, ConceptTexts, GenerationRequest, Kind

if TYPE_CHECKING:
    from bench.diffusion.model import DiffusionModel

Role = Literal["conditional", "unconditional", "extra"]


@dataclass(frozen=True, eq=False)
class Cond:
    """The encoded text of one UNet slot over a whole trajectory."""

    embeds: Tensor
    """float32 [V, L, D]: V variants of the text states."""
    variant_at: Tensor
    """int64 [steps] into V: which variant each sampling step sees."""
    added: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the UNet is told of the text, float32 [V, …]. SDXL: "text_embeds" [V, P], the second encoder's pooled text.

    An edit of the states carries it on: `dataclasses.replace(cond, embeds=…)` of what `PlainText` makes.
    """
    adapter_scale: Tensor = field(default_factory=lambda: torch.empty(0))
    """float32 [A] on the CPU: how strongly this text lets each adapter of an edit act (`Slots.scale`). Of an unconditional or extra
    text, empty means as the row's prompt has it."""


class TextEdit(ABC):
    """Changes what the UNet is told. Sees prompts, never the suite's labels. A frozen dataclass with JSON or Tensor fields."""

    unconditional_only: ClassVar[bool] = False
    """Whether it changes the unconditional text alone. Pictures without guidance have none: there it is refused."""

    @abstractmethod
    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """One `Cond` per text. `role` says which slot the text is for; the unconditional text is ""."""


class Guidance(ABC):
    """Combines the noise predictions of a row's conditions. A frozen dataclass with JSON fields, equal if it acts equally."""

    extra_texts: tuple[str, ...]
    """Texts of the conditions after unconditional and conditional; encoded with role "extra"."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Rows whose guidance has the same type and key are combined in one call; without parameters all have."""
        return ()

    def init(self, latents: Tensor) -> dict[str, Tensor]:
        """The state of rows [R, 4, h, w] before the first step, if it keeps one; every tensor is [R, …]."""
        return {}

    @abstractmethod
    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`eps` float32 [R, K, 4, h, w] (unconditional, conditional, extra …) → ([R, 4, h, w], new state), out of place.

        `step` int64 [R], each row's own; `scale` [R, 1, 1, 1].
        """


class Slots(NamedTuple):
    """What an edit is told of the S slots of a UNet call; int64 [S] but for `scale`."""

    timestep: Tensor
    which: Tensor
    """The index of each slot's edit in the bank, −1 for none."""
    key: Tensor
    """A function of the slot's request and of its role (unconditional, conditional …), from which an edit draws what it draws."""
    row: Tensor
    """Below the number of rows: slots of one row have the same."""
    scale: Tensor = torch.empty(1, 0)
    """float32 [S, A], `Cond.adapter_scale` of the slots' texts, where these have fewer filled up with ones."""


class EditBank(nn.Module):
    """The activation edits of one class at all of its hook points, stacked. What it remembers of a row is in the row's state."""

    def state(self, rows: int) -> dict[str, Tensor]:
        """What it remembers of rows before their first step, on the bank's device; every tensor is [rows, …]."""
        return {}

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        """The new output of the block at `hookpoint`, out of place and differentiable.

        `x_in`, `x_out` [S, C, H, W] (within blocks, [S, tokens, C]) in the model's dtype; slots without an edit must come back bit
        for bit. `state` is that of the call's rows; what changes in it is put there as new tensors.
        """
        raise TypeError(f"{type(self).__name__} does not define edit()")

    def detect(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, wanted: Tensor) -> Tensor:
        """Bool [S, E]: where each of the bank's E edits, its row's state as at the start, might change the output or that state.

        Only pairs in `wanted` bool [S, E] matter. False means that the edit is certainly the identity here; a needless True costs
        time, never a bit. Called where every edit's `quiet_is_identity` holds.
        """
        raise TypeError(f"{type(self).__name__} does not define detect()")


class ActivationEdit(ABC):
    """Changes what a block of the UNet puts out. A frozen dataclass with JSON or Tensor fields."""

    hookpoints: tuple[str, ...]
    """Names of UNet modules, such as "up_blocks.1.attentions.1"."""
    timesteps: Tensor | None = None
    """int64 [T], the timesteps that its tables were made for. A sampling step takes the nearest; one that is farther from
    it than half of the tables' widest spacing is refused. None: the edit is the same at every step."""
    quiet_is_identity: ClassVar[bool] = False
    """Whether its bank can `detect`: rows then share the un-edited trajectory until it fires."""

    @property
    def bank(self) -> str:
        """Edits of a class are stacked together if this is the same."""
        return ""

    @classmethod
    @abstractmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> EditBank:
        """One module for many edits of this class, all with the same `bank`."""


class Probe(ABC):
    """Looks at what blocks of the UNet put out, after all edits, while pictures are sampled. Changes nothing."""

    hookpoints: tuple[str, ...]

    @abstractmethod
    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """`x_in`, `x_out` [S, C, H, W]; `row` int64 [S], which of the sampled rows a slot belongs to, −1 for padding.

        `role` int64 [S]: 0 unconditional, 1 conditional, 2 and up the guidance's extra texts.
        """


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors that replace the model's own, by name with prefix "unet.", "text_encoder." or "text_encoder_2."."""

    values: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Erasure:
    """A fitted method: any of its parts. Saved as a folder by `bench.erasure`."""

    text: TextEdit | None = None
    weights: Weights | None = None
    activations: tuple[ActivationEdit, ...] = ()
    guidance: Guidance | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the fit wants recorded (losses, counts); JSON."""


class MethodConfig(BaseModel):
    """Parameters of a method: typed, checked, unknown names refused. Every field needs a default and a description.

    A field that names a file or folder is of type `Path | None`: a path changes no result, the digests of `inputs` do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures to train on with their captions, as the autoencoder's latents."""

    latents: Tensor
    """float32 [n, 4, h, w], scaled, on the model's device."""
    prompts: tuple[str, ...]
    anchors: tuple[str, ...]
    """The same captions with what should take the concept's place; of pictures without it, the captions."""


@dataclass(frozen=True)
class FitContext:
    """What a method may use to fit."""

    model: DiffusionModel
    texts: Callable[[Concept], ConceptTexts]
    seed: int
    steps: int
    """Sampling steps of the evaluation."""
    guidance_scale: float
    dtype: torch.dtype = torch.float32
    """Precision of the run; a method that trains computes in it through autocast, with float32 weights."""
    assets: Assets = field(default_factory=Assets)
    """What the suite provides for its model: hook points, sparse autoencoders."""
    statistics: Callable[[Kind], Sequence[GenerationRequest]] = lambda kind: ()
    """Pictures that show concepts of a kind, each labelled with the one that it counts for."""
    examples: Callable[[Concept, int, bool], Examples] = lambda concept, count, shown: _no_examples()
    """So many pictures that show a concept, or that do not: true ones where the suite has them, else sampled by the model itself.

    The first n of a larger number are the same. A method that uses them says so in `inputs` ("examples": `Assets.examples`).
    """
    captions: Callable[[Concept, int], Sequence[tuple[str, str]]] = lambda concept, count: _no_examples()
    """Those of `examples` that show the concept: with it, and with what should take its place."""
    generate: Callable[[Sequence[str]], Tensor] = lambda prompts: _no_examples()
    """What the unedited model makes of prompts, as latents float32 [n, 4, h, w], each from noise that evaluation never uses."""
    slots: int = 32
    """UNet slots of the run's calls."""
    cache: Path | None = None
    """A folder for what takes long to make and is the same for several fits; None: nowhere."""
    progress: Callable[[float, str], None] = lambda share, text: None
    """Call with the share done in [0, 1] and a word on it."""
    concepts: Sequence[Concept] = ()
    """All that the suite knows, for what is made once from the texts of all."""


def _no_examples() -> NoReturn:
    raise BenchError("This context has no pictures to train on.")


class UnlearningMethod(ABC):
    """One way to remove concepts. Subclass it in `methods/<name>.py` and name the class in `METHOD`."""

    version: ClassVar[int] = 1
    """Raise it when the same configuration would give other pictures."""
    card: ClassVar[Card]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    parts: ClassVar[tuple[type, ...]] = ()
    """The part classes that its erasures use, so that saved ones can be read back."""
    tuning: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """What `python -m bench tune` tries: parameter → values, texts, numbers or truth values. Every combination is a setting."""
    published_tuning: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """What its authors tried, the same way."""
    quick: ClassVar[Mapping[str, Any]] = {}
    """Parameters with which a fit takes a second on a tiny model, for methods that train: `python -m bench check` uses them."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """Digests of all files that `fit` reads beside the model: they are part of a result's identity."""
        return {}

    def check(self, model: DiffusionModel, concepts: Sequence[Concept]) -> None:  # noqa: B027  # most can do with any model
        """BenchError for what it cannot do for this model on these concepts, before anything is sampled."""

    @property
    def row_wise(self) -> bool:
        """Whether its erasures leave the weights alone, so that their rows share UNet calls with other methods' rows."""
        return True

    def prepare(self, context: FitContext, concepts: Sequence[Concept]) -> None:  # noqa: B027  # most share nothing
        """Make what several of its fits share, once, and keep it below `context.cache`: the time of a fit is measured without it."""

    @abstractmethod
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """The erasure that removes all `concepts` at once. Must leave `context.model` as it was."""

    def fit_after(self, context: FitContext, start: Erasure, concepts: Sequence[Concept]) -> Erasure:
        """The erasure that removes `concepts` too, going on from `start`, one of its own that removes others.

        Methods that train may define it; all others are fitted again on everything that is to be removed.
        """
        raise TypeError(f"{type(self).__name__} does not go on from an earlier erasure")

    @classmethod
    def continues(cls) -> bool:
        """Whether it defines `fit_after`."""
        return cls.fit_after is not UnlearningMethod.fit_after


class ClassifierOutput(NamedTuple):
    """Verdicts on n pictures, float32: logits [n, styles], [n, objects], features [n, d]."""

    style: Tensor
    object: Tensor
    features: Tensor


@runtime_checkable
class Classifier(Protocol):
    """A judge: names of its classes in the order of its logits, its weights' digest, and a call on uint8 [n, H, W, 3] of the CPU."""

    styles: tuple[str, ...]
    objects: tuple[str, ...]
    digest: str
    batch: int
    """It is always called with so many pictures, so that neighbours cannot matter."""

    def __call__(self, pixels: torch.Tensor) -> ClassifierOutput:
        """See `ClassifierOutput`."""


@runtime_checkable
class Examiner(Protocol):
    """What gives a number for a picture, stored in its `column`: "clip", or "artifact" (1 for a broken picture, 0 for a whole one)."""

    column: str
    digest: str
    batch: int

    def examine(self, pixels: torch.Tensor, prompts: Sequence[str]) -> Sequence[float]:
        """uint8 [n, H, W, 3] of the CPU and the prompts that were asked for → n numbers."""


@runtime_checkable
class FeatureNetwork(Protocol):
    """A network whose features distances between sets of pictures are measured in."""

    digest: str
    batch: int
    stores_half: bool
    """Whether its features are stored in half precision."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, H, W, 3] of the CPU → float32 [n, d]."""
