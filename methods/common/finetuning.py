"""What methods share that fine-tune a UNet on pictures: noise, predictions of the trained and of the frozen weights, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.api import DiffusionModel, Erasure, FitContext, PlainText, Weights
from methods.common.training import descend, predict

Part = Literal["x", "x-strict", "u", "all"]
"""Which Linear and Conv2d modules are trained: all in cross-attention; its keys and values; all outside it; all."""


def parameter_names(unet: nn.Module, part: Part) -> list[str]:
    """Parameters of the modules of a part."""
    wanted: dict[Part, Callable[[str], bool]] = {
        "x": lambda name: "attn2" in name,
        "x-strict": lambda name: name.endswith(("attn2.to_k", "attn2.to_v")),
        "u": lambda name: "attn2" not in name,
        "all": lambda name: True,
    }
    modules = [(name, m) for name, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and wanted[part](name)]
    return [f"{name}.{key}" for name, module in modules for key, _ in module.named_parameters(recurse=False)]


class Texts(NamedTuple):
    """Encoded texts, one for each picture."""

    states: Tensor
    """float32 [n, L, D]."""
    pooled: Tensor
    """float32 [n, P]; P = 0 but for SDXL."""

    @classmethod
    def of(cls, model: DiffusionModel, texts: Sequence[str]) -> Texts:
        """Of plain texts; the empty one is the unconditional."""
        known = {text: PlainText().encode(model, [text], "conditional" if text else "unconditional", 1)[0] for text in set(texts)}
        conds = [known[text] for text in texts]
        pooled = [cond.added.get("text_embeds", cond.embeds[:, 0, :0]) for cond in conds]
        return cls(torch.cat([cond.embeds for cond in conds]), torch.cat(pooled))

    def take(self, pick: Tensor) -> Texts:
        """Those at these places."""
        return Texts(self.states[pick], self.pooled[pick])

    @staticmethod
    def join(parts: Iterable[Texts]) -> Texts:
        """One after the other."""
        states, pooled = zip(*parts, strict=True)
        return Texts(torch.cat(states), torch.cat(pooled))


class Noisy(NamedTuple):
    """Latents somewhere on the way to noise."""

    latents: Tensor
    """float32 [n, 4, h, w]."""
    timesteps: Tensor
    """int64 [n]."""
    target: Tensor
    """What a perfect model predicts there, noise or velocity, float32 [n, 4, h, w]."""


class Student:
    """Copies of some of the UNet's parameters that train, while the UNet itself stays as it is.

    Predictions are made in the run's precision through autocast, with float32 weights; losses are float32.
    """

    def __init__(self, context: FitContext, names: Sequence[str], start: Mapping[str, Tensor] | None = None) -> None:
        """`start`: "unet.…" weights to begin with, by default the model's own."""
        own, start = dict(context.model.unet.named_parameters()), start or {}
        self.context, self.model = context, context.model
        self.weights = {name: start.get(f"unet.{name}", own[name]).detach().clone().requires_grad_() for name in names}
        self.generator = torch.Generator().manual_seed(context.seed)

    def predict(self, at: Noisy, texts: Texts) -> Tensor:
        """float32 [n, 4, h, w], of the trained weights."""
        return self._predict(self.weights, at, texts)

    @torch.no_grad()
    def now(self, at: Noisy, texts: Texts) -> Tensor:
        """Of the weights as they are, without gradient."""
        return self._predict(self.weights, at, texts)

    @torch.no_grad()
    def frozen(self, at: Noisy, texts: Texts) -> Tensor:
        """Of the unedited model."""
        return self._predict({}, at, texts)

    def _predict(self, weights: Mapping[str, Tensor], at: Noisy, texts: Texts) -> Tensor:
        def unet(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.model.unet, dict(weights), args, kwargs)

        return predict(self.context, unet, at.latents, at.timesteps, *texts)

    def pick(self, count: int, batch: int) -> Tensor:
        """int64 [batch] below `count`, drawn."""
        return torch.randint(count, (batch,), generator=self.generator)

    def noisy(self, latents: Tensor, timestep: int | None = None) -> Noisy:
        """Each with noise of the timestep, or of one drawn for each as in training."""
        scheduler = self.model.scheduler
        low, high = (0, scheduler.config.num_train_timesteps) if timestep is None else (timestep, timestep + 1)
        timesteps = torch.randint(low, high, (len(latents),), generator=self.generator)
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        alpha = scheduler.alphas_cumprod[timesteps].to(latents)[:, None, None, None]
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = signal * noise - spread * latents if velocity else noise
        return Noisy(signal * latents + spread * noise, timesteps.to(latents.device), target)

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Of a loss, by weight."""
        return list(torch.autograd.grad(loss, list(self.weights.values())))

    def train(
        self, loss: Callable[[], Tensor], iterations: int, learning_rate: float, masks: Mapping[str, Tensor] | None = None,
        weight_decay: float = 0.0, change: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:  # fmt: skip
        """Adam (with decay AdamW); gradients times `masks`, then as `change()` leaves them. Gives notes on the losses."""
        kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
        optimiser = kind(self.weights.values(), lr=learning_rate, weight_decay=weight_decay)

        def masked() -> None:
            for name, mask in (masks or {}).items():
                grad = self.weights[name].grad
                if grad is not None:
                    grad.mul_(mask)
            change()

        return {"first_and_last_loss": descend(self.context, optimiser, iterations, loss, change=masked)}

    def erasure(self, notes: Mapping[str, Any]) -> Erasure:
        """What was trained."""
        values = {f"unet.{name}": value.detach() for name, value in self.weights.items()}
        return Erasure(weights=Weights(values), notes={**notes, "parameters": sum(value.numel() for value in values.values())})


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared difference, a scalar."""
    return (found - wanted).square().mean()
