"""The supervised SAE: every concept has a latent of its own, which then fires for it."""

from __future__ import annotations

import pytest
import torch

from bench.errors import BenchError
from bench.interfaces import FitContext
from bench.registry import load_object
from bench.types import Concept
from methods.sae.autoencoder import SAEConfig, SparseAutoencoder, folder_of, load_sae
from methods.sae.statistics import Statistics, load_statistics
from methods.sae.supervised import Supervision, assigned, supervised, supervised_loss

FISH = Concept("object", "fish")
QUICK = Supervision(pictures=2, iterations=6, batch=8, learning_rate=1e-3, label_weight=1.0, sparsity_weight=0.0)


def statistics_of(means: list[list[float]]) -> Statistics:
    table = torch.tensor(means)[:, None, :]
    names = tuple(f"object:{k}" for k in range(len(means)))
    return Statistics(names, torch.tensor([1]), table, torch.ones(len(means)).long(), "", "")


def test_no_two_concepts_get_the_same_latent() -> None:
    # Both fire latent 0; the second, in which it is a larger share, gets it.
    assert assigned(statistics_of([[5.0, 4.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 3.0]])).tolist() == [1, 0, 2]


def test_the_loss_by_hand() -> None:
    sae = SparseAutoencoder(SAEConfig(2, 1, num_latents=2))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(2))
        sae.encoder.bias.zero_()
        sae.W_dec.copy_(torch.eye(2))
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    latents, wanted = torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]])
    for known, expected in ((torch.ones(1, 2), (0.126928 + 0.693147) / 2), (torch.tensor([[1.0, 0.0]]), 0.126928)):
        found = supervised_loss(sae, x, latents, wanted, known, Supervision(1, 1, 1, 1.0, 1.0, 0.0))
        assert float(found.detach()) == pytest.approx(expected, abs=1e-5)  # it is rebuilt exactly; softplus(−2), softplus(0)
    sparse = supervised_loss(sae, x, latents, wanted, torch.ones(1, 2), Supervision(1, 1, 1, 1.0, 0.0, 1.0))
    assert float(sparse.detach()) == pytest.approx(1.0)


def test_fine_tuning_makes_the_latent_fire_for_its_concept(context: FitContext) -> None:
    hookpoint = "mid_block.attentions.0"
    saes = context.assets.sae_folder
    assert saes is not None
    before = load_sae(folder_of(saes, hookpoint), context.model.device)
    statistics = load_statistics(folder_of(saes, hookpoint), before.digest, context.model.digest)
    latents = assigned(statistics)
    place = supervised(context, saes, [hookpoint], QUICK)
    after = load_sae(folder_of(place, hookpoint), context.model.device)
    untrained = supervised(context, saes, [hookpoint], Supervision(**{**vars(QUICK), "iterations": 0}))
    found, plain = (
        load_statistics(folder_of(own, hookpoint), load_sae(folder_of(own, hookpoint), context.model.device).digest, context.model.digest)
        for own in (place, untrained)
    )
    assert found.means.shape == (len(statistics.concepts), context.steps, after.config.latents)

    def margin(one: Statistics) -> float:
        own = one.means.mean(1)[torch.arange(len(latents)), latents]
        return float((own / one.means.mean(1)[:, latents].mean(0)).mean())

    assert margin(found) > margin(plain), "more than before it fires for its own concept"
    assert supervised(context, saes, [hookpoint], QUICK) == place, "made once"


def test_without_a_place_to_keep_it_is_a_sentence(context: FitContext) -> None:
    from dataclasses import replace

    kind = load_object("methods.saemnesia:METHOD")
    with pytest.raises(BenchError, match="must be kept somewhere"):
        kind().fit(replace(context, cache=None), [FISH])


def test_a_given_sae_is_taken_as_it_is(context: FitContext) -> None:
    kind, other = (load_object(f"methods.{name}:METHOD") for name in ("saemnesia", "saeuron"))
    own = kind(kind.Config(sae=context.assets.sae_folder)).fit(context, [FISH])
    same = other(other.Config(features=1, detection="saeuron-code")).fit(context, [FISH])
    assert own.notes == same.notes
