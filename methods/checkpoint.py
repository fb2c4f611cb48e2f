"""Checkpoint: an unlearned model that others published, `checkpoint:PATH`."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from bench.api import Assets, BenchError, Card, Concept, DiffusionModel, Erasure, FitContext, MethodConfig, UnlearningMethod, Weights
from methods.common import compvis, published
from methods.common.adapters import FacilitatedTransport, Factors, LowRankAdapters, adapted_modules
from methods.common.erasers import Erasers
from methods.common.published import Published

CONCEPT = "{concept}"
LEAST_LIKE = 0.05
"""Cosine of a file's UNet matrices with the model's, a judgement: of weights drawn apart it is about 0. On minicanvas fine-tuning keeps
0.96 and more, ConceptPrune 0.78, and MACE's closed form 0.12, in a file of keys and values alone."""


class CheckpointConfig(MethodConfig):
    """Parameters of a checkpoint."""

    path: Path | None = Field(None, description="The file or folder; {concept} in it becomes the name of the concept that is removed.")
    base: str = Field("", description="The model it was made from, as its authors say; recorded, not interpreted.")
    other_base: bool = Field(
        False, description="Take a UNet's weights even if they are unlike this model's, as those of another base model are."
    )
    preset: Literal["corrected", "published-code"] = Field(
        "corrected", description="Of SPM's files: each prompt's gamma, or gamma squared as in the authors' infer_spm.py."
    )

    @field_validator("path")
    @classmethod
    def _whole(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()  # other processes may work elsewhere


class Checkpoint(UnlearningMethod):
    """Takes published files as they are. Which kind a file is shows in it (`methods/common/published.py`).

    Weights: a diffusers folder, a UNet or some of its weights, a dictionary of UNet and text encoder, a text encoder's folder, a CompVis
    checkpoint. Adapters: SPM's, which act per prompt on the texts in their metadata, and other LoRAs of the UNet with scale 1.
    Erasers: Receler's. Weights that equal the model's own in the file's precision are left out; autoencoders are not taken.
    """

    card = Card(
        title="Published checkpoint", paper="", bibtex="", supports=("style", "object"),
        cite_instead="whoever made the file",
        notes="The file's digest and the base model that it is said to be of are in the record. Of Receler's files, names are unverified.",
    )  # fmt: skip
    Config = CheckpointConfig
    parts = (LowRankAdapters, FacilitatedTransport, Erasers)

    @property
    def row_wise(self) -> bool:
        """Whether all files that the path may mean hold adapters or erasers."""
        pattern = glob.escape(str(self.config.path or "")).replace(CONCEPT, "*")
        found = [Path(name) for name in glob.glob(pattern)]
        return bool(found) and all(map(_leaves_weights, found))

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """The digest of the file or folder."""
        path = self._path(concepts)
        published.kind_of(path)
        return {"checkpoint": published.digest_of(path)}

    def check(self, model: DiffusionModel, concepts: Sequence[Concept]) -> None:
        """That the file is one of this model."""
        self._taken(model, concepts)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Nothing is trained: the file's tensors, checked against the model."""
        return self._taken(context.model, concepts)

    def _taken(self, model: DiffusionModel, concepts: Sequence[Concept]) -> Erasure:
        path = self._path(concepts)
        found = published.read(path)
        notes: dict[str, Any] = {"kind": found.kind}
        if found.kind == "adapters":
            edit = LowRankAdapters.of([_adapters(path, found, model.unet)])
            prompts, power = found.metadata.get("prompts"), 2 if self.config.preset == "published-code" else 1
            text = FacilitatedTransport((prompts,), power) if prompts else None
            return Erasure(text=text, activations=(edit,), notes={**notes, "prompts": prompts})
        if found.kind == "erasers":
            return Erasure(activations=(_erasers(path, found, model.unet),), notes=notes)
        values, shares = self._weights(path, found, model)
        return Erasure(weights=Weights(values), notes=notes | shares)

    def _path(self, concepts: Sequence[Concept]) -> Path:
        if self.config.path is None:
            raise BenchError("checkpoint needs a file or folder: checkpoint:PATH (python -m bench show checkpoint).")
        text = str(self.config.path)
        if CONCEPT in text and len(concepts) != 1:
            names = " and ".join(concept.name for concept in concepts)
            raise BenchError(f"{text} names one concept, not {names} at once: give the path of a checkpoint that removes them all.")
        return Path(text.replace(CONCEPT, concepts[0].name)) if CONCEPT in text else Path(text)

    def _weights(self, path: Path, found: Published, model: DiffusionModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights that differ from the model's own, and what is told of all."""
        own = dict(_own(model))
        values = dict(_values(path, found, own, model))
        matrices = [name for name in values if name.startswith("unet.") and own[name].ndim > 1]  # vectors of all models are alike
        notes: dict[str, Any] = {"weights": len(values)}
        if matrices:
            like = _cosine([values[name] for name in matrices], [own[name] for name in matrices])
            notes["like_base"] = round(like, 4)
            if not like >= LEAST_LIKE and not self.config.other_base:
                raise BenchError(
                    f"{path} is of another base model: the cosine of its UNet's weights with this model's is {like:.2f}. Give one that was"
                    " made from this model, or take it nevertheless (--set checkpoint.other_base=true)."
                )
        changed = {name: value.float() for name, value in values.items() if not torch.equal(own[name].to(value.dtype), value)}
        if not changed:
            raise BenchError(f"{path} holds the unedited model: nothing in it differs from the model of this suite.")
        return changed, notes | {"changed": len(changed)}


def _leaves_weights(path: Path) -> bool:
    """Of a file that nothing is known of, whoever reads it says what is wrong."""
    try:
        return published.kind_of(path) in ("adapters", "erasers")
    except BenchError:
        return False


def _own(model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    """The model's weights on the CPU, as `Weights` names them."""
    networks = {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}
    for prefix, network in networks.items():
        for name, value in network.named_parameters() if network is not None else ():
            yield f"{prefix}.{name}", value.detach().cpu()


def _values(path: Path, found: Published, own: Mapping[str, Tensor], model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    """The file's weights under the model's names. BenchError for one that the model lacks or has in another shape."""
    names = _names(found, own, model)
    taken = [name for name in found.tensors if not _aside(name, found)]
    if not taken:
        raise BenchError(f"{path} holds no weight of a UNet or text encoder: give another file.")
    strange = [name for name in taken if _short(name) not in names]
    if strange:
        raise BenchError(
            f'{path} has {len(strange)} weights of {len(taken)} that this model lacks, such as "{strange[0]}": it is of another model.'
        )
    for name in taken:
        value, real = found.tensors[name], names[_short(name)]
        if value.shape != own[real].shape:
            raise _other_shape(path, name, value.shape, own[real].shape)
        yield real, value


def _names(found: Published, own: Mapping[str, Tensor], model: DiffusionModel) -> dict[str, str]:
    """A file's name, `_short`, → the model's."""
    if found.kind != "compvis":
        return {_short(name): name for name in own}
    inner = [name.removeprefix("unet.") for name in own if name.startswith("unet.")]
    unet = compvis.unet_names(inner, model.unet.config.layers_per_block)
    text = {_short(name.replace("text_encoder.", compvis.TEXT, 1)): name for name in own if name.startswith("text_encoder.")}
    return {theirs: f"unet.{name}" for theirs, name in unet.items()} | text


def _short(name: str) -> str:
    """Versions of transformers differ in whether names of text encoders begin with "text_model."."""
    return name.replace(".text_model.", ".", 1)


def _aside(name: str, found: Published) -> bool:
    """What no method changes: positions, the schedule, the autoencoder, averaged weights."""
    schedule = found.kind == "compvis" and ("." not in name or name.startswith(compvis.ASIDE))
    return name.endswith("position_ids") or schedule


def _cosine(values: Sequence[Tensor], own: Sequence[Tensor]) -> float:
    """Of all as one vector each."""
    pairs = [(value.double().flatten(), mine.double().flatten()) for value, mine in zip(values, own, strict=True)]
    dots = torch.stack([torch.stack((v @ m, v @ v, m @ m)) for v, m in pairs]).sum(0)
    return float(dots[0] / (dots[1] * dots[2]).sqrt())


def _other_shape(path: Path, name: str, theirs: Sequence[int], mine: Sequence[int]) -> BenchError:
    return BenchError(f'{path} has "{name}" of shape {list(theirs)}, this model {list(mine)}: it is of another model.')


def _adapters(path: Path, found: Published, unet: nn.Module) -> dict[str, Factors]:
    """Factors by module, alpha / rank multiplied in (kohya's convention, which SPM follows)."""
    modules = {f"lora_unet_{name.replace('.', '_')}": (name, module.weight.shape) for name, module in adapted_modules(unet).items()}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.tensors.items():
        module, _, part = name.partition(".")
        if module not in modules or part not in ("lora_down.weight", "lora_up.weight", "alpha"):
            raise BenchError(
                f'{path} has "{name}", which adapts nothing within the transformer blocks of this UNet: it is of another model or form.'
            )
        layers.setdefault(module, {})[part] = tensor.float()
    factors = {}
    for key, own in sorted(layers.items()):
        name, (out, read, *_) = modules[key]
        if not {"lora_down.weight", "lora_up.weight"} <= own.keys():
            raise BenchError(f'{path} has only one factor of "{key}": it is damaged.')
        down, up = own["lora_down.weight"].flatten(1), own["lora_up.weight"].flatten(1)
        if (up.shape, down.shape[1]) != ((out, len(down)), read):
            raise _other_shape(path, key, (*up.shape, *down.shape), (out, len(down), len(down), read))
        factors[name] = Factors(down, up * (float(own.get("alpha", torch.tensor(len(down)))) / len(down)))
    return factors


def _erasers(path: Path, found: Published, unet: nn.Module) -> Erasers:
    """By cross-attention layer; blocks are named with or without `.attn2`."""
    modules = dict(unet.named_modules())
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.tensors.items():
        block, part = ".".join(name.split(".")[:-2]), ".".join(name.split(".")[-2:])
        layer = block.removesuffix(".attn2") + ".attn2"
        if layer not in modules:
            raise BenchError(f'{path} has an eraser at "{block}", which this UNet lacks: it is of another model.')
        layers.setdefault(layer, {})[part] = tensor.float()
    for layer, own in layers.items():
        width = modules[layer].to_out[0].out_features
        shapes = {part: list(tensor.shape) for part, tensor in own.items()}
        rank = len(next(iter(layers.values())).get("down.bias", ()))
        if shapes != {"down.weight": [rank, width], "down.bias": [rank], "up.weight": [width, rank], "up.bias": [width]}:
            raise BenchError(f'{path} has an eraser at "{layer}" of shapes {shapes}, which do not fit {width} channels and rank {rank}.')
    return Erasers.of(layers)


METHOD = Checkpoint
