"""A Stable Diffusion 1.x or SDXL as the parts the sampler needs, loaded once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bench.diffusion.attention import use_small_attention
from bench.diffusion.hooks import CompiledUNet
from bench.diffusion.soft import SoftText
from bench.errors import BenchError
from bench.prompts import LEARNED

KEPT_TEXTS = 2048
"""Encoded texts that are kept at most: 0.5 GB of SD 1.5's."""
DECODED_AT_ONCE = 16 * 1024
"""Positions of latents: 16 pictures of 256 px, 4 of 512."""


class Encoded(NamedTuple):
    """What the text encoders say of a text."""

    states: Tensor
    """float32 [L, D]. SD 1.x: the last hidden states; SDXL: the last but one of both encoders, side by side."""
    added: dict[str, Tensor]
    """What else the UNet is told of it. SDXL: "text_embeds" float32 [P], the second encoder's pooled and projected text."""


class DiffusionModel:
    """Text encoder (SDXL: two), UNet, autoencoder and schedule of one model on one device.

    The networks are held in float32, their masters; `sampling_unet(dtype)` gives the copy that samples. Everything is
    frozen; a method that trains enables gradients on its own copies.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        digest: str = "",
        tokenizer_2: CLIPTokenizer | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        empty_is_zero: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.float().eval().requires_grad_(False)
        self.unet = unet.float().eval().requires_grad_(False)
        self.vae = vae.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.scheduler = scheduler
        self.digest = digest
        self.tokenizer_2 = tokenizer_2
        self.text_encoder_2 = text_encoder_2.float().eval().requires_grad_(False) if text_encoder_2 is not None else None
        self.empty_is_zero = empty_is_zero
        """Whether the empty unconditional text is all zeros (SDXL's `force_zeros_for_empty_prompt`)."""
        self.learned: dict[str, Tensor] = {}
        """Embeddings [d] of tokens that are in no vocabulary, by the name that prompts call them (`learned_name`)."""
        self._encoded: dict[str, Encoded] = {}
        self._edited: tuple[str, dict[str, Encoded]] = "", {}
        """Digest and texts of the last other text encoders."""
        self._copy: tuple[torch.dtype, UNet2DConditionModel] | None = None
        self._compiled: CompiledUNet | None = None

    @property
    def device(self) -> torch.device:
        """Where all parts live."""
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent at the model's own size."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of its own pictures in px."""
        _, height, width = self.latent_shape
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return height * factor, width * factor

    @property
    def max_tokens(self) -> int:
        """Length L of the text states."""
        return int(self.tokenizer.model_max_length)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, L], padded and cut to the model's length; a learned token counts as one and looks like the vocabulary's first word."""
        plain = [text for text in texts if not isinstance(text, SoftText)]
        rows = iter(_ids(self.tokenizer, [LEARNED.sub(self._blank, text) for text in plain])) if plain else iter(())
        return torch.stack([text.ids.cpu() if isinstance(text, SoftText) else next(rows) for text in texts])

    @cached_property
    def _blank(self) -> str:
        """A word of one token."""
        special = {*self.tokenizer.all_special_ids}
        words = (self.tokenizer.decode([i]).strip() for i in range(len(self.tokenizer)) if i not in special)
        return next(word for word in words if word.isalnum() and len(self.tokenizer(word).input_ids) == 3)

    @property
    def blank_token(self) -> int:
        """What a learned token looks like to whoever looks at tokens."""
        return int(_ids(self.tokenizer, [self._blank])[0, 1])

    def soft(self, text: str) -> SoftText:
        """A text with the embeddings of its tokens. BenchError for a token that nobody has learned here."""
        ids = self.tokenize([text])[0].to(self.device)
        table = self.text_encoder.get_input_embeddings().weight
        embeds = table[ids].detach()
        pieces, place = LEARNED.split(text), 1
        for name, before in zip(LEARNED.findall(text), pieces, strict=False):
            if name not in self.learned:
                raise BenchError(f"Nobody knows the token {name}: give the embedding that it was learned with.")
            place += len(self.tokenizer(LEARNED.sub(self._blank, before)).input_ids) - 2
            if place < len(ids) and int(ids[place]) == self.blank_token:
                embeds = embeds.index_copy(0, torch.tensor([place], device=ids.device), self.learned[name].to(embeds)[None])
            place += 1
        return SoftText(text, ids, embeds)

    def text_output(self, texts: Sequence[str]) -> Any:
        """What the (first) text encoder puts out for texts; of `SoftText` alone with a gradient to their embeddings."""
        texts = [self.soft(text) if LEARNED.search(text) and not isinstance(text, SoftText) else text for text in texts]
        if not any(isinstance(text, SoftText) for text in texts):
            with torch.no_grad():
                return self.text_encoder(self.tokenize(texts).to(self.device))
        soft = [text if isinstance(text, SoftText) else self.soft(text) for text in texts]
        ids = torch.stack([text.ids for text in soft]).to(self.device)
        embeds = torch.stack([text.embeds for text in soft])
        handle = self.text_encoder.get_input_embeddings().register_forward_hook(lambda module, inputs, output: embeds.to(output))
        try:
            return self.text_encoder(ids)
        finally:
            handle.remove()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each distinct text is encoded once per encoder, alone, so that neighbours cannot matter; those of `SoftText` all at once.

        BenchError for the latter, and for learned tokens, where there are two text encoders.
        """
        distinct = list(dict.fromkeys(texts))
        soft = [text for text in distinct if isinstance(text, SoftText)]
        if self.text_encoder_2 is not None and any(isinstance(text, SoftText) or LEARNED.search(text) for text in distinct):
            raise BenchError("This model has two text encoders: learned tokens, and gradients to a text, are for models with one.")
        states = self.text_output(soft).last_hidden_state if soft else ()
        found: dict[str, Encoded] = {text: Encoded(own, {}) for text, own in zip(soft, states, strict=True)}
        for text in distinct:
            if not isinstance(text, SoftText):
                if text not in self._encoded:
                    self._encoded[text] = self._encode(text)
                    if len(self._encoded) > KEPT_TEXTS:  # attacks judge many, each once
                        del self._encoded[next(iter(self._encoded))]
                found[text] = self._encoded[text]
        return [found[text] for text in texts]

    @torch.no_grad()
    def _encode(self, text: str) -> Encoded:
        if self.text_encoder_2 is None:
            return Encoded(self.text_output([text]).last_hidden_state[0], {})
        ids = self.tokenize([text]).to(self.device)
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(_ids(self.tokenizer_2, [text]).to(self.device), output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return Encoded(states[0], {"text_embeds": second.text_embeds[0]})

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, L, D], the states of `encode`."""
        return torch.stack([one.states for one in self.encode(texts)])

    @property
    def added(self) -> tuple[str, ...]:
        """Names of what the UNet is told of a text beside its states (`Encoded.added`)."""
        return () if self.text_encoder_2 is None else ("text_embeds",)

    @staticmethod
    def unet_texts(states: Tensor, added: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The UNet's arguments for the texts of S slots, `states` [S, L, D] and `added` [S, …], and (SDXL) sizes of their pictures in px.

        SDXL is told of a picture's size before and after cropping, and where it was cropped; these are float32, as bfloat16 rounds them.
        """
        if not added:
            return {"encoder_hidden_states": states}
        time_ids = torch.tensor([(height, width, 0, 0, height, width) for height, width in sizes], dtype=torch.float32)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {**added, "time_ids": time_ids.to(states.device)}}

    def forget_texts(self) -> None:
        """Encode texts anew from now on."""
        self._encoded = {}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [n, 4, h, w] → uint8 pixels [n, H, W, 3] on the CPU, in float32 and batches of fixed size."""
        batch, found = max(1, min(16, DECODED_AT_ONCE // latents[0, 0].numel())), []
        for part in latents.float().split(batch):
            padded = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)])
            pixels = self.vae.decode(padded / self.vae.config.scaling_factor).sample[: len(part)]
            found.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [n, H, W, 3] → scaled latents float32 [n, 4, h, w], the modes of the autoencoder's posteriors."""
        found = []
        for part in pixels.split(8):
            images = part.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found.append(self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor)
        return torch.cat(found)

    def sampling_unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet in `dtype`: the master itself for float32, else one cached copy."""
        if dtype == torch.float32:
            return self.unet
        if self._copy is None or self._copy[0] != dtype:
            copy = UNet2DConditionModel.from_config(self.unet.config).to(self.device)
            copy.load_state_dict(self.unet.state_dict())
            layout = torch.channels_last if channels_last(self.device, dtype) else torch.preserve_format
            use_small_attention(copy)
            self._copy = dtype, copy.to(dtype, memory_format=layout).eval().requires_grad_(False)
        return self._copy[1]

    @property
    def copy(self) -> tuple[torch.dtype, UNet2DConditionModel] | None:
        """The copy that `sampling_unet` keeps, None before the first."""
        return self._copy

    def forget_copies(self) -> None:
        """Have `sampling_unet` make its copy anew."""
        self._copy = self._compiled = None

    def compiled_unet(self, dtype: torch.dtype) -> CompiledUNet:
        """`sampling_unet(dtype)` compiled; it sees swapped weights as that one does."""
        unet = self.sampling_unet(dtype)
        if self._compiled is None or self._compiled.unet is not unet:
            self._compiled = CompiledUNet(unet, attention_blocks(unet))
        return self._compiled

    @contextmanager
    def weights(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Swap in the named tensors ("unet.…", "text_encoder.…", "text_encoder_2.…"), on exit put the model's own back bit for bit.

        Raises BenchError, with nothing changed, for an unknown name or another shape.
        """
        pairs = [(place, values[name]) for name in values for place in self._places(name, values[name])]
        own, had_copy = [place.clone() for place, _ in pairs], self._copy is not None
        encoded = self._encoded
        if any(name.startswith("text_encoder") for name in values):
            key = _digest(values, "text_encoder")
            if key != self._edited[0]:
                self._edited = key, {}
            self._encoded = self._edited[1]
        try:
            with torch.no_grad():
                for place, value in pairs:
                    place.copy_(value)
            yield
        finally:
            with torch.no_grad():
                for (place, _), value in zip(pairs, own, strict=True):
                    place.copy_(value)
            self._encoded = encoded
            if not had_copy:  # one made in between holds the edited weights
                self._copy = None

    def _places(self, name: str, value: Tensor) -> list[Tensor]:
        part, _, key = name.partition(".")
        networks: list[nn.Module] = {
            "unet": [self.unet, *([self._copy[1]] if self._copy else [])], "text_encoder": [self.text_encoder],
            "text_encoder_2": [self.text_encoder_2] if self.text_encoder_2 is not None else [],
        }.get(part, [])  # fmt: skip
        found = [dict(network.named_parameters()).get(key) for network in networks]
        places = [place for place in found if place is not None]
        if not places:
            raise BenchError(f'The model has no weight "{name}": the edit was made for another model.')
        if places[0].shape != value.shape:
            shapes = f"{list(value.shape)} in the edit but {list(places[0].shape)} in the model"
            raise BenchError(f'The weight "{name}" is {shapes}: the edit was made for another model.')
        return [place.data for place in places]


def _ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """int64 [n, L]."""
    ids: Tensor = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def _digest(values: Mapping[str, Tensor], prefix: str) -> str:
    """SHA-256 of those tensors whose name has the prefix."""
    found = hashlib.sha256()
    for name in sorted(values):
        if name.startswith(prefix):
            found.update(name.encode())
            found.update(values[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the UNet's convolutions are laid out for tensor cores, which have no use for the other layout; on a CPU it is slower."""
    return device.type == "cuda" and dtype != torch.float32


def attention_blocks(unet: nn.Module) -> list[str]:
    """Names of the blocks that read text, in the order of the forward pass."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    names = [name for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)]
    return sorted(names, key=lambda name: order[name.partition(".")[0]])
