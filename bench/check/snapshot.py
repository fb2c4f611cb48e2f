"""A model as it was, to find out what a method left changed in it, and to undo that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bench.diffusion.model import DiffusionModel

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")


class Snapshot:
    """Every parameter and buffer, what modules are set to, what is said of some texts, and settings of torch itself."""

    def __init__(self, model: DiffusionModel, texts: Sequence[str]) -> None:
        self.model, self.texts = model, ["", *texts]
        self.networks = _networks(model)
        self.tensors = {name: value.detach().clone() for name, value in _tensors(self.networks).items()}
        self.forwards = {type(module): type(module).forward for network in self.networks.values() for module in network.modules()}
        self.settings = self._settings()
        self.states = model.text_states(self.texts).clone()

    def differences(self) -> list[str]:
        """Names of what is not bit for bit as it was."""
        now = _networks(self.model)
        replaced = [name for name, network in self.networks.items() if now.get(name) is not network]
        tensors = _tensors(now)
        changed = [name for name, value in self.tensors.items() if not _same(tensors.get(name), value)]
        settings = self._settings()
        other = [name for name in {**self.settings, **settings} if settings.get(name) != self.settings.get(name)]
        other += [f"the method forward of {kind.__name__}" for kind, forward in self.forwards.items() if kind.forward is not forward]
        other += _changed_copy(self.model)
        texts = [] if torch.equal(self.model.text_states(self.texts), self.states) else ["the states of encoded texts"]
        return [*replaced, *changed, *other, *(texts if not replaced and not changed else [])]

    def restore(self) -> None:
        """Make everything as it was."""
        for name, network in self.networks.items():
            setattr(self.model, name, network)
            network.eval().requires_grad_(False)
            network.load_state_dict({key: self.tensors[f"{name}.{key}"] for key in network.state_dict()})
            for module in network.modules():
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
                module.__dict__.pop("forward", None)
        for kind, forward in self.forwards.items():
            kind.forward = forward
        self.model.forget_copies()
        self.model.forget_texts()
        torch.set_grad_enabled(self.settings["torch's grad mode"])
        torch.set_default_dtype(self.settings["torch's default dtype"])
        torch.set_num_threads(self.settings["torch's number of threads"])

    def _settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "torch's grad mode": torch.is_grad_enabled(), "torch's default dtype": torch.get_default_dtype(),
            "torch's number of threads": torch.get_num_threads(), "the scheduler's config": dict(self.model.scheduler.config),
        }  # fmt: skip
        for name, network in _networks(self.model).items():
            for key, module in network.named_modules():
                found[f"{name}.{key} (training mode)"] = module.training
                found[f"{name}.{key} (a forward of its own)"] = "forward" in vars(module)
                found[f"{name}.{key} (forward hooks)"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
            found.update({f"{name}.{key} (requires_grad)": value.requires_grad for key, value in network.named_parameters()})
        return found


def _networks(model: DiffusionModel) -> dict[str, nn.Module]:
    return {name: network for name in NETWORKS if (network := getattr(model, name)) is not None}


def _tensors(networks: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def _same(now: torch.Tensor | None, before: torch.Tensor) -> bool:
    return now is not None and now.dtype == before.dtype and torch.equal(now, before)


def _changed_copy(model: DiffusionModel) -> list[str]:
    """What of the UNet's copy in half precision, which runs sample with, is not what its weights give."""
    if model.copy is None:
        return []
    dtype, copy = model.copy
    own = model.unet.state_dict()
    changed = [name for name, value in copy.state_dict().items() if not torch.equal(value, own[name].to(dtype))]
    altered = [name for name, module in copy.named_modules() if "forward" in vars(module) or module._forward_hooks]
    return [f"the UNet's copy in {str(dtype).removeprefix('torch.')}: {name}" for name in (*changed, *altered)]
