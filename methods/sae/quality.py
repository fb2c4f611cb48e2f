"""How well SAE latents detect concepts, on pictures that no latent, scale or threshold was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from bench.api import BenchError, DiffusionModel, Erasure, GenerationRequest, Row, sample
from methods.sae.autoencoder import SparseAutoencoder
from methods.sae.calibration import Detectors, MaximaCollector, order_statistic, scaled
from methods.sae.statistics import membership_of


def gate_table(detectors: Mapping[str, Detectors], features: int, alpha: float) -> pd.DataFrame:
    """Recall and false positives over whole trajectories, for each hook point alone and for all together, as a gate uses them.

    `detectors` by hook point. Thresholds are those of the calibrate split, at rate `alpha` shared out to the hook points of a row;
    counts are of the verify split. `worst` is the other concept of the same kind with the highest rate;
    `recall_at_own_threshold` takes, in hindsight, the threshold that gives the verify split itself that rate.
    """
    sets = [{name: one} for name, one in detectors.items()]
    rows = []
    for own in [*sets, dict(detectors)] if len(sets) > 1 else sets:
        first = next(iter(own.values()))
        if any(one.concepts != first.concepts or not torch.equal(one.verify_shows, first.verify_shows) for one in own.values()):
            raise BenchError(f"The detectors at {' and '.join(own)} are of different pictures: calibrate them together.")
        for c in range(len(first.concepts)):
            alone = [one.verify[c, features - 1] / one.threshold(c, features, alpha, len(own)) for one in own.values()]
            together = torch.stack(alone).amax(0)
            rows.append({"hookpoint": " + ".join(own), "features": features, "alpha": alpha, **_row(first, c, together, alpha)})
    return pd.DataFrame(rows)


def _row(detectors: Detectors, concept: int, statistic: Tensor, alpha: float) -> dict[str, object]:
    """`statistic` [N] in units of its threshold."""
    shows, names = detectors.verify_shows, detectors.concepts
    fires, own = statistic > 1, shows[concept]
    kind = names[concept].partition(":")[0]
    rates = {
        name: float(fires[shows[o] & ~own].float().mean()) for o, name in enumerate(names) if o != concept and name.startswith(f"{kind}:")
    }
    worst = max(rates, key=lambda name: rates[name])
    in_hindsight = order_statistic(statistic[~own].sort().values, alpha)
    return {
        "concept": names[concept], "fired": int(fires[own].sum()), "n": int(own.sum()), "recall": float(fires[own].float().mean()),
        "recall_at_own_threshold": float((statistic > in_hindsight)[own].float().mean()), "fired_unrelated": int(fires[~own].sum()),
        "n_unrelated": int((~own).sum()), "false_positives": float(fires[~own].float().mean()), "worst_concept": worst,
        "worst_rate": rates[worst],
    }  # fmt: skip


def step_statistics(
    model: DiffusionModel, saes: Mapping[str, SparseAutoencoder], detectors: Mapping[str, Detectors],
    requests: Sequence[GenerationRequest], dtype: torch.dtype, slots: int,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """By hook point: float32 [R, C, T, K], what each step alone says with its first k latents, and bool [R, C], which pictures show what.

    `requests` must be of a split that detectors were not made from.
    """
    steps = {len(one.timesteps) for one in detectors.values()}
    if steps != {requests[0].steps}:
        raise BenchError(f"The detectors are of {sorted(steps)} steps, the pictures of {requests[0].steps}: they must be the same.")
    probes = {name: MaximaCollector(saes[name], name, one.latents, len(requests)) for name, one in detectors.items()}
    sample(model, [Row(request, Erasure()) for request in requests], dtype, slots, probes=list(probes.values()))
    return {name: (scaled(probes[name].maxima, one.scales), membership_of(requests, one.concepts) > 0) for name, one in detectors.items()}


def step_recall(steps: Tensor, shows: Tensor, alpha: float) -> Tensor:
    """`steps` [R, C, T, K], `shows` [R, C] → float32 [C, T, K], share of own pictures above what a share `alpha` of others exceed."""
    found = []
    for c in range(steps.shape[1]):
        own, other = steps[shows[:, c], c], steps[~shows[:, c], c]
        allowed = int(alpha * len(other) + 1e-9)
        threshold = other.topk(allowed + 1, dim=0).values[-1]
        found.append((own > threshold).float().mean(0))
    return torch.stack(found)
