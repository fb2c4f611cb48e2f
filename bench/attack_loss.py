"""Whether attacks did what they are for: the loss that white-box attacks lower, of the prompts they ended with, on noise they never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import noise_seed
from bench.diffusion.numerics import pick_device
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.diffusion.victim import Victim
from bench.erasure import load_erasure
from bench.errors import BenchError
from bench.files import write_atomic
from bench.interfaces import Erasure
from bench.plan import BASE
from bench.registry import method
from bench.registry import suite as find_suite
from bench.store import Store
from bench.types import GenerationRequest, Target

TIMESTEPS = 24
"""In the middles of equal parts of the trained ones, each with noise of its own."""
FILE = "attack_losses.csv"


def attack_losses(store: Store, methods: Sequence[str], device: str, say: Callable[[str], None]) -> pd.DataFrame:
    """One row per goal and attack that the clean prompt did not reach, also written as `attack_losses.csv` into the run's folder.

    `loss` is `‖ε − ε_θ(x_t, t, prompt)‖²` of the erased model on the picture that the unedited one makes of the named prompt
    (UnlearnDiffAtk, arXiv:2310.11868), a mean over `TIMESTEPS` with the same noise for all prompts of a goal; `clean_loss` is that of the
    clean prompt. An attack whose prompts do not lower it has told nothing of the model. BenchError for a run without attacks.
    """
    config, plan, path = store.config(), store.read_json("plan.json", ["units", "rows"]), store.folder / "attack_prompts.csv"
    if plan is None or not path.is_file():
        raise BenchError(f"{store.folder} has no attack_prompts.csv: `run --attacks` makes one.")
    suite, where = find_suite(config["suite"]), pick_device(device)
    steps = config["steps"] or suite.presets[config["preset"]].steps
    table = pd.read_csv(path, keep_default_na=False)
    table = table[(table["clean"].astype(str) != "True") & (table["prompt"] != "")]
    if methods:
        table = table[table["label"].isin(methods)]
    if table.empty:
        raise BenchError(f"{path} has no such rows: nothing of them was attacked.")
    model = load_model(suite.model_folder(), where)
    dtype, slots = getattr(torch, config["numerics"]["dtype"]), int(config["numerics"]["slots"])
    parts = []
    for (label, target), own in table.groupby(["label", "target"], sort=False):
        say(f"{label} on {target}")
        erasure = _erasure(store, plan, str(label), str(target), where)
        kind = Target.parse(str(target)).kind
        goals = [goal for _, goal in own.groupby(["style", "object", "seed"], sort=False)]
        requests = [suite.request(*goal[["style", "object", "seed"]].iloc[0], steps) for goal in goals]
        pictures = sample(model, [Row(request, Erasure()) for request in requests], dtype, slots).latents
        with ExitStack() as stack:
            if erasure.weights is not None:
                stack.enter_context(model.weights(erasure.weights.values))
            for goal, request, picture in zip(goals, requests, pictures, strict=True):
                parts.append(_losses(model, dtype, request, erasure, picture, goal).assign(kind=kind))
    found = pd.concat(parts, ignore_index=True)
    write_atomic(store.folder / FILE, found.to_csv(index=False).encode())
    return found


def summary(losses: pd.DataFrame) -> pd.DataFrame:
    """Per row, kind and attack: goals, the mean ratio of loss to clean loss, the share of goals where it is below one."""
    ratios = losses.assign(ratio=losses["loss"] / losses["clean_loss"])
    groups = ratios.groupby(["label", "kind", "attack"], sort=False)["ratio"]
    return groups.agg(goals="size", ratio="mean", lower=lambda own: float((own < 1).mean())).reset_index()


@torch.no_grad()
def _losses(
    model: DiffusionModel, dtype: torch.dtype, request: GenerationRequest, erasure: Erasure, picture: torch.Tensor, goal: pd.DataFrame
) -> pd.DataFrame:
    """Of all prompts that attacks ended with on one goal, whose picture's latent is [4, h, w]."""
    clean = str(goal["clean_prompt"].iloc[0])
    for text in filter(None, goal["learned"]):
        model.learned.update({name: torch.tensor(value, device=model.device) for name, value in json.loads(text).items()})
    victim = Victim(model, [Row(replace(request, prompt=clean), erasure)], dtype)
    times = torch.tensor(victim.spread(TIMESTEPS))
    generator = torch.Generator().manual_seed(noise_seed(request.seed, f"{request.noise_key}\nloss"))
    noise = torch.randn(TIMESTEPS, *picture.shape, generator=generator).to(picture)
    pictures = picture.expand(TIMESTEPS, -1, -1, -1)
    noisy, wanted = victim.noised(pictures, times, noise), victim.target(pictures, times, noise)

    def loss(prompt: str) -> float:
        return float((victim.predict([0] * TIMESTEPS, [prompt] * TIMESTEPS, noisy, times) - wanted).square().mean())

    columns = goal[["label", "target", "style", "object", "seed", "attack", "success"]]
    return columns.assign(loss=[loss(prompt) for prompt in goal["prompt"]], clean_loss=loss(clean))


def _erasure(store: Store, plan: Mapping[str, Any], label: str, target: str, device: torch.device) -> Erasure:
    row = plan["rows"][label]
    if row["method"] == BASE:
        return Erasure()
    fits = {unit["fit"] for unit in plan["units"] if unit["method"] == label and unit["target"] == target}
    folder = store.folder / "erasures" / next(iter(fits), "")
    if not fits or not folder.is_dir():
        raise BenchError(f"{store.folder} has no erasure of {label} on {target}: give the run's command again.")
    return load_erasure(folder, method(row["method"]).parts, device)[0]
