"""The TopK sparse autoencoder of SAeUron (arXiv:2501.18052, public code `SAE/sae.py`); its published files, and those for SDXL-Turbo."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.api import BenchError, sha256_file, sha256_text, write_atomic

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
UNBOX_CONFIG, UNBOX_WEIGHTS = "config.json", "state_dict.pth"
"""As in the release of arXiv:2410.22366 for SDXL-Turbo (surkovv/sdxl-unbox)."""
_UNBOX_NAMES = {"encoder.weight": "encoder.weight", "latent_bias": "encoder.bias", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
_BLOCK = 128


@dataclass(frozen=True)
class SAEConfig:
    """`cfg.json` of a published SAE; fields it does not know are dropped on reading."""

    d_in: int
    """Channels of the hook point."""
    k: int
    """Latents kept per token."""
    expansion_factor: int = 16
    num_latents: int = 0
    """0: `d_in · expansion_factor`."""
    normalize_decoder: bool = True
    batch_topk: bool = False
    """Training only: k · N latents are kept over N tokens. In use every token keeps its own k."""
    sample_topk: bool = False
    input_unit_norm: bool = False
    multi_topk: bool = False
    residual: bool = False
    """Whether it reads what the block adds to its input, output − input, and not the output."""

    @property
    def latents(self) -> int:
        """How many latents there are."""
        return self.num_latents or self.d_in * self.expansion_factor


class SparseAutoencoder(nn.Module):
    """`z = TopK(ReLU(W_enc (x − b_dec) + b_enc))`, `x̂ = z W_dec + b_dec`, all in float32. Initialised as in the public code."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.digest = ""
        self.encoder = nn.Linear(config.d_in, config.latents)
        nn.init.zeros_(self.encoder.bias)
        self.W_dec = nn.Parameter(self.encoder.weight.detach().clone())
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.normalise_decoder()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Rows of `W_dec` to unit length."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps)

    def tokens(self, x_in: Tensor, x_out: Tensor) -> Tensor:
        """What it reads of a block's input and output [S, C, H, W]: the output's tokens [S, P, C], or float32 ones of output − input."""
        return tokens_of(x_out.float() - x_in.float() if self.config.residual else x_out)

    def pre(self, x: Tensor) -> Tensor:
        """[…, d_in] of any dtype → float32 […, latents] after the ReLU, before the TopK."""
        return torch.relu(self.encoder(x.float() - self.b_dec))

    def encode(self, x: Tensor) -> Tensor:
        """[…, d_in] → float32 […, latents] with the k largest of each token; latents that tie with the k-th are kept too."""
        z = self.pre(x)
        return z * (z >= self.smallest_kept(z))

    def smallest_kept(self, z: Tensor) -> Tensor:
        """[…, latents] → [..., 1], the k-th largest of each token."""
        return z.topk(self.config.k, dim=-1).values[..., -1:]

    def exceeding(self, tokens: Tensor, latents: Tensor, above: Tensor) -> Tensor:
        """float32 [S, P, K]: what `encode` gives for `latents` [S, K] of each slot where it exceeds `above` [S, K]; elsewhere no more.

        Whether a latent is among the TopK takes the token's full row, so on a CPU only tokens where one may exceed are encoded: a
        cheap product with the K rows of the encoder rules the others out, with room for the rounding of two sums of `d_in` products.
        Encoded in blocks of one size, a token's bits do not depend on how many they are. Elsewhere a shape that depends on data
        would be a stall.
        """
        if tokens.device.type != "cpu":
            pre = self.pre(tokens)
            z = pre.gather(2, latents[:, None, :].expand(-1, tokens.shape[1], -1))
            return z * (z >= self.smallest_kept(pre))
        centred = (tokens.float() - self.b_dec).flatten(0, 1)
        maybe = self._may_exceed(centred.detach().view(tokens.shape), latents, above).flatten().nonzero().flatten()
        found, slot = centred.new_zeros(len(centred), latents.shape[1]), maybe // tokens.shape[1]
        for block, own in zip(maybe.split(_BLOCK), slot.split(_BLOCK), strict=True) if len(maybe) else ():
            x = centred[torch.cat([block, block[-1:].expand(_BLOCK - len(block))])]
            pre = torch.relu(self.encoder(x))[: len(block)]
            z = pre.gather(1, latents[own])
            token, which = (z > above[own]).nonzero(as_tuple=True)
            value = z[token, which]
            # As `encode`: at least the k-th largest. Split, because hits may be many times the tokens.
            larger = [(pre[t] > v[:, None]).sum(1) for t, v in zip(token.split(_BLOCK), value.split(_BLOCK), strict=True)]
            kept = torch.cat(larger) < self.config.k
            found = found.index_put((block[token], which), value * kept)
        return found.view(*tokens.shape[:2], -1)

    def _may_exceed(self, centred: Tensor, latents: Tensor, above: Tensor) -> Tensor:
        """Bool [S, P]."""
        weight, bias = self.encoder.weight.detach()[latents], self.encoder.bias.detach()[latents]
        rough = torch.baddbmm(bias[:, None, :], centred, weight.transpose(1, 2))
        unit = torch.finfo(torch.float32).eps
        slack = 2 * self.config.d_in * unit * centred.norm(dim=2, keepdim=True) * weight.norm(dim=2)[:, None, :]
        return (rough + slack + 4 * unit * bias.abs()[:, None, :] > above[:, None, :]).any(2)

    def decode(self, z: Tensor) -> Tensor:
        """[…, latents] → [..., d_in]."""
        return z @ self.W_dec + self.b_dec

    def save(self, folder: Path) -> None:
        """Write `cfg.json` and `sae.safetensors` (half precision, keys as published)."""
        body = {**asdict(self.config), "batch_topk": True}
        write_atomic(folder / CONFIG, (json.dumps(body, indent=1) + "\n").encode())
        write_atomic(folder / WEIGHTS, save({key: value.detach().cpu().half().contiguous() for key, value in self.state_dict().items()}))


def tokens_of(x: Tensor) -> Tensor:
    """[S, C, H, W] → [S, H·W, C], row-major."""
    return x.flatten(2).transpose(1, 2)


def check_block(unet: nn.Module, hookpoint: str, config: SAEConfig) -> None:
    """BenchError if there is no such block or it says that it puts out another number of channels, as attention blocks do."""
    block = dict(unet.named_modules()).get(hookpoint)
    if block is None:
        raise BenchError(f'The UNet has no block "{hookpoint}": `python -m bench locate` names those that read text.')
    known = [getattr(block, name, None) for name in ("out_channels", "in_channels")]
    check_width(hookpoint, config, next((width for width in known if isinstance(width, int)), config.d_in))


def check_width(hookpoint: str, config: SAEConfig, width: int) -> None:
    """BenchError if the block's channels are not the SAE's."""
    if width != config.d_in:
        raise BenchError(
            f"The SAE for {hookpoint} takes {config.d_in} channels, the block puts out {width}: use one that was trained there."
        )


def folder_of(saes: Path, hookpoint: str) -> Path:
    """Where the SAE of a hook point is published: `unet.up_blocks.1.attentions.1` below the folder of SAEs."""
    return saes / f"unet.{hookpoint}"


def sae_digest(folder: Path) -> str:
    """SHA-256 of both files. BenchError if one is missing."""
    return _digest(folder, _stamp(folder))


def load_sae(folder: Path, device: torch.device) -> SparseAutoencoder:
    """Read a published or own SAE in float32, frozen, once while its files stay as they are. BenchError says what is wrong with it."""
    return _load(folder, device, _stamp(folder))


def _files(folder: Path) -> tuple[Path, Path]:
    """Configuration and weights; SDXL-Turbo's where its weights are there and no file of the other format. BenchError if one is missing."""
    own, unbox = (CONFIG, WEIGHTS), (UNBOX_CONFIG, UNBOX_WEIGHTS)
    is_unbox = (folder / UNBOX_WEIGHTS).is_file() and not any((folder / name).is_file() for name in own)
    config, weights = (folder / name for name in (unbox if is_unbox else own))
    for path in (config, weights):
        if not path.is_file():
            raise BenchError(
                f"{folder} holds no SAE ({path.name} is missing): train one (python -m bench train-sae --hookpoints BLOCK) or name another"
                " folder or block."
            )
    return config, weights


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes when a file does."""
    stats = [path.stat() for path in _files(folder)]
    return tuple(value for stat in stats for value in (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _digest(folder: Path, stamp: tuple[int, ...]) -> str:
    config, weights = _files(folder)
    return sha256_text(sha256_file(config) + sha256_file(weights))


@lru_cache(maxsize=8)
def _load(folder: Path, device: torch.device, stamp: tuple[int, ...]) -> SparseAutoencoder:
    digest, (path, weights) = _digest(folder, stamp), _files(folder)
    try:
        body = json.loads(path.read_text())
        config, tensors = _read_unbox(body, weights) if weights.name == UNBOX_WEIGHTS else _read_own(body, weights)
        sae = SparseAutoencoder(config)
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        if shapes != {key: tuple(value.shape) for key, value in sae.state_dict().items()}:
            size = f"{config.d_in} channels and {config.latents} latents"
            raise ValueError(f"{path.name} describes {size}, {weights.name} holds other shapes")
        sae.load_state_dict({key: value.float() for key, value in tensors.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        first = " ".join((str(error) or type(error).__name__).split())[:200]
        raise BenchError(f"The SAE in {folder} cannot be read ({first}): restore the folder.") from error
    except Exception as error:  # safetensors raises its own base-class exception for a truncated file
        if type(error).__module__.startswith("safetensors"):
            raise BenchError(f"{weights} is damaged ({error}): restore it.") from error
        raise
    if config.input_unit_norm:
        raise BenchError(f"The SAE in {folder} normalises its input (input_unit_norm), which is not supported: use one that does not.")
    sae.digest = digest
    return sae.to(device).eval().requires_grad_(False)


def _read_own(body: Mapping[str, Any], weights: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    known = {field.name for field in fields(SAEConfig)}
    return SAEConfig(**{key: value for key, value in body.items() if key in known}), load_file(weights)


def _read_unbox(body: Mapping[str, Any], weights: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    """`z = ReLU(TopK(W_enc (x − pre_bias) + latent_bias))`, `x̂ = W_dec z + pre_bias` of x = output − input.

    A latent that the TopK keeps and the ReLU zeroes is zero in the other order too, so that both give the same latents. The
    release's mean.pt and std.pt are not read: the encoder of its public code does not use them, and what does was not found out.
    """
    state = torch.load(weights, map_location="cpu", weights_only=True).get("state_dict", {})
    lacking = [name for name in ("d_model", "k", "n_dirs_local") if name not in body] + [name for name in _UNBOX_NAMES if name not in state]
    if lacking:
        raise ValueError(f"it lacks {lacking[0]}")
    tensors = {own: state[name] for name, own in _UNBOX_NAMES.items()}
    return SAEConfig(body["d_model"], body["k"], num_latents=body["n_dirs_local"], residual=True), tensors | {"W_dec": tensors["W_dec"].T}
