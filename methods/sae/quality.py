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
            alone = [one.verify[c, features - 1] / one.threshold(c, features, alpha / len(own)) for one in own.values()]
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


def step_table(
    model: DiffusionModel, saes: Mapping[str, SparseAutoencoder], detectors: Mapping[str, Detectors],
    requests: Sequence[GenerationRequest], alpha: float, dtype: torch.dtype, slots: int,
) -> pd.DataFrame:  # fmt: skip
    """Each step alone as a detector: AUROC, and recall at the threshold that a share `alpha` of these very pictures exceeds.

    By hook point, concept, step and number of latents. `requests` must be of a split that detectors were not made from.
    """
    steps = {len(one.timesteps) for one in detectors.values()}
    if steps != {requests[0].steps}:
        raise BenchError(f"The detectors are of {sorted(steps)} steps, the pictures of {requests[0].steps}: they must be the same.")
    probes = {name: MaximaCollector(saes[name], name, one.latents, len(requests)) for name, one in detectors.items()}
    sample(model, [Row(request, Erasure()) for request in requests], dtype, slots, probes=list(probes.values()))
    found = []
    for name, one in detectors.items():
        statistics = scaled(probes[name].maxima, one.scales)
        shows = membership_of(requests, one.concepts) > 0
        auroc, recall = step_auroc(statistics, shows), step_recall(statistics, shows, alpha)
        for c, concept in enumerate(one.concepts):
            for t, timestep in enumerate(one.timesteps.tolist()):
                place = {"hookpoint": name, "concept": concept, "step": t, "timestep": timestep, "alpha": alpha}
                pairs = zip(auroc[c, t].tolist(), recall[c, t].tolist(), strict=True)
                found += [{**place, "features": k, "auroc": a, "recall": r} for k, (a, r) in enumerate(pairs, start=1)]
    return pd.DataFrame(found)


def step_auroc(steps: Tensor, shows: Tensor) -> Tensor:
    """`steps` [R, C, T, K], `shows` [R, C] → float32 [C, T, K], chance that a picture with the concept exceeds one without."""
    found = []
    for c in range(steps.shape[1]):
        ranks = _ranks(steps[:, c].flatten(1))
        n, m = int(shows[:, c].sum()), int((~shows[:, c]).sum())
        found.append(((ranks[shows[:, c]].sum(0) - n * (n + 1) / 2) / (n * m)).view(steps.shape[2:]))
    return torch.stack(found).float()


def step_recall(steps: Tensor, shows: Tensor, alpha: float) -> Tensor:
    """`steps` [R, C, T, K], `shows` [R, C] → float32 [C, T, K], share of own pictures above what a share `alpha` of others exceed."""
    found = []
    for c in range(steps.shape[1]):
        own, other = steps[shows[:, c], c], steps[~shows[:, c], c]
        allowed = int(alpha * len(other) + 1e-9)
        threshold = other.topk(allowed + 1, dim=0).values[-1]
        found.append((own > threshold).float().mean(0))
    return torch.stack(found)


def _ranks(values: Tensor) -> Tensor:
    """[R, F] → float64 ranks 1 … R down each column, ties averaged."""
    order = values.sort(0).values.T.contiguous()
    columns = values.T.contiguous()
    low = torch.searchsorted(order, columns, right=False)
    high = torch.searchsorted(order, columns, right=True)
    return ((low + high + 1).double() / 2).T
