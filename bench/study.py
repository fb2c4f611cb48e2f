"""What `python -m bench study` measures with a suite's SAEs: detectors, their localisation, what edits do to activations."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.diffusion.model import DiffusionModel
from bench.files import write_atomic
from bench.interfaces import Erasure
from bench.metrics.artifacts import ArtifactReference, auroc
from bench.metrics.uncertainty import wilson
from bench.registry import load_object, method
from bench.scoring import judge_all, load_judge
from bench.session import fit_context
from bench.suites.suite import Suite
from bench.tuned import configs
from bench.types import Concept, GenerationRequest, Target

ALPHA, GATE_FEATURES = 0.01, (1, 2, 4, 8)
MULTIPLIERS = (-1.0, -5.0, -10.0, -20.0, -30.0)


@dataclass(frozen=True)
class Study:
    """One suite's SAEs under the methods `saeuron` and `saeuron-detect`; tables and pictures go to `out`."""

    suite: Suite
    concepts: Sequence[Concept]
    model: DiffusionModel
    dtype: torch.dtype
    slots: int
    steps: int
    pictures: int
    out: Path
    verify_pictures: int
    """For detectors at single steps."""
    say: Callable[[str], None]

    def run(self) -> dict[str, pd.DataFrame]:
        """All of it, each table written as soon as it is there."""
        tables: dict[str, pd.DataFrame] = {}
        for name in ("detectors", "localisation", "activations"):
            for part, table in getattr(self, name)().items():
                tables[part] = table
                write_atomic(self.out / f"{part}.csv", table.to_csv(index=False).encode())
        self.looks()
        return tables

    def erase(self, name: str, concept: Concept, **settings: Any) -> Erasure:
        """A method's erasure as it was tuned for the concept, with some settings changed."""
        untuned, tuned = configs(self.suite, name, settings, self.suite.tuned(name))
        context = fit_context(self.suite, replace(self.suite.presets["full"], steps=self.steps), self.model, self.dtype, self.slots)
        erasure: Erasure = method(name)(tuned.get(str(concept), untuned)).fit(context, [concept])
        return erasure

    def own(self, concept: Concept, start: int = 0) -> list[GenerationRequest]:
        """Pictures of the verify split that show a concept."""
        enough = (start + self.pictures) * max(len(self.suite.styles), len(self.suite.objects)) * 2
        everything = self.suite.split_requests("verify", enough, self.steps)
        return [r for r in everything if Target((concept,)).involves(r.style, r.object)][start : start + self.pictures]

    def detectors(self) -> dict[str, pd.DataFrame]:
        """Whole trajectories from the files beside the SAEs; single steps on the verify split, sampled again."""
        folder_of, load_sae = load_object("methods.sae.autoencoder:folder_of"), load_object("methods.sae.autoencoder:load_sae")
        load = load_object("methods.sae.calibration:load_detectors")
        gates, saes, detectors = [], {}, {}
        for names in self.suite.assets.hookpoints.values():
            for name in names:
                folder = folder_of(self.suite.assets.sae_folder, name)
                saes[name] = load_sae(folder, self.model.device)
                detectors[name] = load(folder, saes[name].digest, self.model.digest)
            own = {name: detectors[name] for name in names}
            gates += [load_object("methods.sae.quality:gate_table")(own, features, ALPHA) for features in GATE_FEATURES]
        gate = pd.concat(gates)
        for share, fired, n in (("recall", "fired", "n"), ("false_positives", "fired_unrelated", "n_unrelated")):
            intervals = [wilson(*counts) or (math.nan, math.nan) for counts in zip(gate[fired], gate[n], strict=True)]
            gate[f"{share}_low"], gate[f"{share}_high"] = zip(*intervals, strict=True)
        return {"detectors": gate, "detectors-steps": self.steps_alone(saes, detectors)}

    def steps_alone(self, saes: Mapping[str, Any], detectors: Mapping[str, Any]) -> pd.DataFrame:
        """Each step as a detector by itself: AUROC, and recall at the threshold that a share `ALPHA` of these very pictures exceeds."""
        self.say(f"detectors, {self.verify_pictures} pictures")
        requests = self.suite.split_requests("verify", self.verify_pictures, len(next(iter(detectors.values())).timesteps))
        found = load_object("methods.sae.quality:step_statistics")(self.model, saes, detectors, requests, self.dtype, self.slots)
        rows = []
        for name, (statistics, shows) in found.items():
            one, recall = detectors[name], load_object("methods.sae.quality:step_recall")(statistics, shows, ALPHA)
            for c, t, k in product(*map(range, recall.shape)):
                values, own = statistics[:, c, t, k].numpy(), shows[:, c].numpy()
                place = {"hookpoint": name, "concept": one.concepts[c], "step": t, "timestep": int(one.timesteps[t]), "alpha": ALPHA}
                rows.append({**place, "features": k + 1, "auroc": auroc(values[~own], values[own]), "recall": float(recall[c, t, k])})
        return pd.DataFrame(rows)

    def localisation(self) -> dict[str, pd.DataFrame]:
        """Against the place where the object really is, of the rule that says where; the gate before it has no place."""
        masked = self.suite.masked_pictures(1)
        if masked is None:
            return {}
        cells, pixels, coverage = masked
        prompts = [self.suite.prompt(style, obj) for style, obj in cells]
        objects = [concept for concept in self.suite.concepts if concept.kind == "object"]
        self.say("localisation")
        edits = {str(c): self.erase("saeuron-detect", c).activations[0] for c in objects}
        table = load_object("methods.sae.study:localisation")(
            self.model, edits, [obj for _, obj in cells], prompts, torch.from_numpy(pixels), torch.from_numpy(coverage), self.dtype,
            self.slots,
        )  # fmt: skip
        return {"localisation": table}

    def activations(self) -> dict[str, pd.DataFrame]:
        """Steering at each strength beside replacement, on pictures that show the concept."""
        found = []
        for concept in self.concepts:
            self.say(f"activations, {concept}")
            edits = {f"steering ×{g:g}": self.erase("saeuron", concept, multiplier=g) for g in MULTIPLIERS}
            if concept.kind in method("saeuron-detect").card.supports:
                edits["replacement"] = self.erase("saeuron-detect", concept)
            table, latents = load_object("methods.sae.study:activation_shift")(
                self.model, self.suite.assets.hookpoints[concept.kind], edits, self.own(concept), self.own(concept, self.pictures),
                self.dtype, self.slots,
            )  # fmt: skip
            found.append(table.assign(concept=str(concept), **self.artifacts(latents, table["edit"])))
        return {"activations": pd.concat(found)}

    def artifacts(self, latents: Mapping[str, torch.Tensor], edits: Iterable[str]) -> dict[str, list[float | None]]:
        """`far`: share of pictures that look like no class; `artifact_auroc`: how well that distance tells them from un-edited ones."""
        path = self.suite.artifact_reference()
        if path is None:
            return {}
        reference, judge = ArtifactReference.load(path), load_judge(self.suite, "artifact", self.model.device)
        distances = {name: reference.distances(judge_all(judge, self.model.decode(own)).features.numpy()) for name, own in latents.items()}
        return {
            "far": [float((distances[name] > reference.threshold).mean()) for name in edits],
            "artifact_auroc": [auroc(distances["un-edited"], distances[name]) for name in edits],
        }

    def looks(self) -> None:
        """Pictures of the chosen latents, of what is changed at each step, and of what becomes of it."""
        for concept in self.concepts:
            self.say(f"a look at {concept}")
            steered = self.erase("saeuron", concept)
            erasures = {"saeuron": steered}
            if concept.kind in method("saeuron-detect").card.supports:
                erasures["saeuron-detect"] = self.erase("saeuron-detect", concept)
            other = [r for r in self.suite.split_requests("verify", 60, self.steps) if not Target((concept,)).involves(r.style, r.object)]
            requests = [*self.own(concept)[:4], *other[7:9]]
            look = load_object("methods.sae.pictures:look_inside")(self.model, erasures, requests, self.dtype, self.slots)
            edit: Any = steered.activations[0]
            chart = load_object("methods.sae.pictures:latents_chart")(edit, edit.factors.abs())
            for name, image in (("look", look), ("latents", chart)):
                buffer = io.BytesIO()
                image.save(buffer, "png", optimize=True)
                write_atomic(self.out / f"{name}-{concept.name}.png", buffer.getvalue())
