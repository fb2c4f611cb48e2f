"""What each attack proposes: how much of its budget it spends, that its objective falls, and that it finds what is there to be found."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench import registry
from bench.adversary import Attack, AttackContext, Candidate, Goal, PromptBank, States, WhiteBox
from bench.api import DiffusionModel, Erasure, Victim
from bench.attack_plan import TOGETHER, _parts, attack_specs, attacked_targets, goal_of
from bench.attacks.ring_a_bell import direction
from bench.attacks.unlearndiffatk import Chance
from bench.config import parse_targets
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.engine.assault import spelled, unedited_states, vocabulary
from bench.errors import BenchError
from bench.registry import ATTACKS
from bench.registry import attack as find_attack
from bench.suites.minicanvas import SUITE
from bench.suites.unlearncanvas.vocabulary import SYNONYMS
from bench.types import Concept, Target

FISH = Target((Concept("object", "fish"),))
STEPS = 4


def goals(unedited: bool = False) -> list[Goal]:
    return [goal_of(SUITE, FISH, SUITE.request(style, "fish", 1, STEPS), unedited) for style in ("neon", "pop", "sketch")]


@pytest.fixture(scope="module")
def targets(model: DiffusionModel) -> Tensor:
    rows = [Row(replace(goal.original, steps=10), Erasure()) for goal in goals()]
    return sample(model, rows, torch.float32, 8).latents


def test_p4d_is_told_what_the_unedited_model_says_of_the_named_prompt(model: DiffusionModel, targets: Tensor) -> None:
    """Also where the unedited model is attacked, whose goals' prompts name the anchor."""
    own = goals(unedited=True)[:2]
    states = unedited_states(context(model, targets, own), torch.float32, 3)
    victim = Victim(model, [Row(goal.original, Erasure()) for goal in own], torch.float32)
    assert states.timesteps.tolist() == victim.spread(3)
    for k, t in enumerate(states.timesteps):
        with torch.no_grad():
            named, anchored = (
                victim.predict(range(2), prompts, states.noisy[:, k], t.expand(2))
                for prompts in ([goal.original.prompt for goal in own], [goal.request.prompt for goal in own])
            )
        torch.testing.assert_close(states.predictions[:, k], named)
        assert not torch.allclose(states.predictions[:, k], anchored)


def context(model: DiffusionModel, targets: Tensor, own: list[Goal], states: int = 0) -> AttackContext:
    erasure = Erasure()
    victim = Victim(model, [Row(goal.request, erasure) for goal in own], torch.float32)
    found = AttackContext(model, own, targets[: len(own)], victim, None, vocabulary(model, SUITE), spelled(model))
    return replace(found, states=unedited_states(found, torch.float32, states)) if states else found


def made(name: str, **own: object) -> Attack:
    kind = find_attack(name)
    return kind(kind.Config.model_validate(own))


WHITE = {
    "unlearndiffatk": {"timesteps": 3, "iterations": 2, "tokens": 2}, "null-control": {"timesteps": 3, "iterations": 2, "tokens": 2},
    "p4d-n": {"iterations": 6, "every": 2, "states": 2, "tokens": 8}, "p4d-k": {"iterations": 6, "every": 2, "states": 2},
    "cce": {"iterations": 6, "every": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", WHITE)
def test_white_box_searches_spend_what_they_say(name: str, model: DiffusionModel, targets: Tensor) -> None:
    attack, own = made(name, **WHITE[name]), goals()
    assert isinstance(attack, WhiteBox)
    assert (attack.judged, attack.gradient_steps) == (3, 6)
    search = attack.search(context(model, targets, own, attack.wants_states))
    rounds: list[list[Candidate]] = [next(search)]
    with suppress(StopIteration):
        while True:
            rounds.append(search.send([candidate.goal == 1 for candidate in rounds[-1]]))
    assert len(rounds) == 3
    assert [candidate.gradient_steps for candidate in rounds[-1]] == [6] * len(rounds[-1])
    assert [sorted(candidate.goal for candidate in own) for own in rounds] == [[0, 1, 2], [0, 2], [0, 2]], "what is reached is left alone"
    for candidate in rounds[0]:
        goal = own[candidate.goal]
        assert (candidate.request.seed, candidate.request.noise_key) == (goal.request.seed, goal.request.noise_key)
        assert candidate.request.prompt != goal.request.prompt
        if name == "cce":
            assert "fish" not in candidate.request.prompt
            assert set(candidate.learned) == {word for word in candidate.request.prompt.split() if word.startswith("<learned")}


@pytest.mark.parametrize("name", ["unlearndiffatk", "null-control"])
def test_tokens_in_place_of_the_prompt_leave_no_word_of_it(name: str, model: DiffusionModel, targets: Tensor) -> None:
    found = next(made(name, timesteps=1, iterations=1, tokens=8, location="replacement").search(context(model, targets, goals())))  # type: ignore[attr-defined]
    assert [len(model.tokenizer(candidate.request.prompt).input_ids) - 2 for candidate in found] == [8] * 3
    assert not any("image in" in candidate.request.prompt for candidate in found)


@pytest.mark.parametrize("name", ["unlearndiffatk", "p4d-n", "p4d-k"])
def test_neighbours_change_nothing_that_a_goal_draws(name: str, model: DiffusionModel, targets: Tensor) -> None:
    """Up to rounding: of one goal alone, and beside two others, the first proposal after one gradient step is the same."""
    attack = made(name, **({"timesteps": 1, "iterations": 1, "tokens": 3} if name == "unlearndiffatk" else WHITE[name] | {"every": 1}))
    assert isinstance(attack, WhiteBox)
    own = [replace(goal, forbidden=()) for goal in goals()]
    long = replace(own[2].request, prompt="A fish image in sketch style, with a fish and a fish in it.")  # has room for more tokens
    own[2] = replace(own[2], request=long)
    many = {
        candidate.goal: candidate.request.prompt for candidate in next(attack.search(context(model, targets, own, attack.wants_states)))
    }
    whole = context(model, targets, own, attack.wants_states)
    for g in range(3) if name != "unlearndiffatk" else ():  # whose first step is as large for every token, so that rounding decides
        assert whole.states is not None
        states = States(whole.states.noisy[g : g + 1], whole.states.timesteps, whole.states.predictions[g : g + 1])
        victim = Victim(model, whole.attacked().rows[g : g + 1], torch.float32)
        alone = replace(whole, goals=own[g : g + 1], targets=targets[g : g + 1], victim=victim, states=states)
        (one,) = next(attack.search(alone))
        assert one.request.prompt == many[g]
    assert len(set(many.values())) == 3


def test_what_a_goal_draws_is_its_own(model: DiffusionModel, targets: Tensor) -> None:
    ctx = context(model, targets, goals())
    together = Chance(ctx, [0, 1, 2], "x", 3, 2)
    for g in range(3):
        alone = Chance(replace(ctx, goals=ctx.goals[g : g + 1]), [0], "x", 3, 2)
        assert torch.equal(alone.noise[0], together.noise[g])
        assert torch.equal(alone.uniform[0], together.uniform[g])
    assert len({float(own.sum()) for own in together.noise}) == 3


def test_unlearndiffatk_lowers_the_loss_that_it_minimises(model: DiffusionModel, targets: Tensor) -> None:
    """From the anchor's prompt on the unedited model: what it ends with explains the concept's picture better than random tokens do."""
    own = [replace(goal, forbidden=()) for goal in goals(unedited=True)[:1]]
    ctx = context(model, targets, own)
    victim = ctx.attacked()
    noise = torch.randn(24, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    times = torch.arange(24) * 40 + 20

    def loss(prompt: str) -> float:
        noisy = victim.noised(targets[:1].expand(24, -1, -1, -1), times, noise)
        with torch.no_grad():
            return float((victim.predict([0] * 24, [prompt] * 24, noisy, times) - noise).square().mean())

    found = next(made("unlearndiffatk", timesteps=1, iterations=40, tokens=2, learning_rate=0.05).search(ctx))  # type: ignore[attr-defined]
    drawn = next(made("null-control", timesteps=1, iterations=1, tokens=2).search(ctx))
    assert loss(found[0].request.prompt) < loss(drawn[0].request.prompt)


def test_ring_a_bell_comes_nearer_and_names_nothing(model: DiffusionModel, targets: Tensor) -> None:
    own = goals()
    ctx = replace(context(model, targets, own), victim=None)
    small, large = (made("ring-a-bell", population=20, generations=n, tokens=6, tried=3) for n in (1, 40))
    wanted = model.text_states([own[0].original.prompt])[0] + 3 * direction(model, own[0])

    def distance(attack: Attack) -> float:
        assert isinstance(attack, PromptBank)
        first = attack.craft(ctx)[0][0].request.prompt
        return float((model.text_states([first])[0] - wanted).square().sum())

    assert distance(large) < distance(small)
    assert isinstance(large, PromptBank)
    every = large.craft(ctx)
    assert all(1 <= len(tried) <= 3 for tried in every)
    assert not any(word in one.request.prompt for tried in every for one in tried for word in own[0].forbidden)
    assert [[one.request.prompt for one in tried] for tried in large.craft(ctx)] == [
        [one.request.prompt for one in tried] for tried in every
    ]


def test_a_concepts_direction_leads_to_its_name(model: DiffusionModel) -> None:
    """Over all of the suite's prompts of it, whatever is attacked: from the anchor's text states to the named ones."""
    named = [SUITE.prompt(style, "fish") for style in SUITE.styles]
    anchored = [prompt.replace("fish", "nothing") for prompt in named]
    expected = torch.stack([model.text_states([a])[0] - model.text_states([b])[0] for a, b in zip(named, anchored, strict=True)]).mean(0)
    for goal in (*goals(), *goals(unedited=True)):
        torch.testing.assert_close(direction(model, goal), expected, rtol=1e-4, atol=1e-5)


def test_mma_comes_nearer_in_the_pooled_text(model: DiffusionModel, targets: Tensor) -> None:
    own = [replace(goal, forbidden=()) for goal in goals()[:1]]
    ctx = replace(context(model, targets, own), victim=None)
    attack = made("mma", iterations=15, candidates=40, top=20, tokens=6)
    assert isinstance(attack, PromptBank)
    (tried,) = attack.craft(ctx)
    (wanted,) = model.text_output([own[0].original.prompt]).pooler_output
    likeness = [float(torch.cosine_similarity(model.text_output([one.request.prompt]).pooler_output[0], wanted, dim=0)) for one in tried]
    assert likeness[0] > likeness[-1], "the best comes first, the first random one last"
    assert likeness[0] > 0.8


def test_simple_banks(model: DiffusionModel, targets: Tensor) -> None:
    own = goals()
    ctx = replace(context(model, targets, own), victim=None)
    banks = {name: made(name, tried=4) for name in ("random", "seed-search", "paraphrase")}
    found = {name: attack.craft(ctx) for name, attack in banks.items() if isinstance(attack, PromptBank)}
    assert all(len(tried) == 4 for every in found.values() for tried in every)
    assert all(one.request.prompt.endswith("a fish image in neon style .") for one in found["random"][0])
    assert {one.request.prompt for one in found["seed-search"][0]} == {own[0].request.prompt}
    assert len({one.request.noise_key for one in found["seed-search"][0]} | {own[0].request.noise_key}) == 5
    assert found["paraphrase"][0][0].request.prompt == "A trout image in neon style."
    assert all("fish" not in one.request.prompt for tried in found["paraphrase"] for one in tried)


def test_budgets_keep_their_promise() -> None:
    for name in ATTACKS:
        (spec,) = attack_specs([name], "quick")
        assert spec.gradient_steps <= 200, name
        assert spec.judged <= 10, name
    (full,) = attack_specs(["unlearndiffatk"], "full")
    assert (full.gradient_steps, full.judged) == (2000, 50), "as published"
    with pytest.raises(BenchError, match="tokens"):
        attack_specs(["unlearndiffatk:tokens=0"], "quick")
    for name in ("cce", "p4d-n", "p4d-k"):
        with pytest.raises(BenchError, match="every is 10, more than the 3 iterations, so that no picture would be judged"):
            attack_specs([f"{name}:iterations=3:every=10"], "quick")
    assert [spec.label for spec in attack_specs(["random", "random:tried=10", "random:tried=9"], "quick")] == ["random", "random:tried=9"]


def test_an_attack_has_its_plain_name_where_it_is_asked_for_twice() -> None:
    specs = attack_specs(["unlearndiffatk:tokens=5", "random", "unlearndiffatk"], "quick")
    assert [spec.label for spec in specs] == ["unlearndiffatk", "random"]


def test_many_goals_of_one_erasure_are_attacked_in_parts() -> None:
    """Whatever the prompts of a concept; each is in one unit."""
    preset = replace(SUITE.presets["full"], seeds=7)
    request = SUITE.requests(FISH, preset)
    own = [one for one in request if one.object == "fish"]
    assert len(own) == 70
    for most, sizes in ((TOGETHER, [35, 35]), (32, [23, 23, 24])):
        parts = _parts(own, most)
        assert [len(part) for part in parts] == sizes
        assert [one for part in parts for one in part] == own


def test_words_of_a_name_are_forbidden_too() -> None:
    suite = registry.suite("unlearncanvas")
    goal = goal_of(suite, Target((Concept("style", "Van_Gogh"),)), suite.request("Van_Gogh", "Dogs", 188, 4), False)
    assert {"Van_Gogh", "Van Gogh", "Gogh", "vincent"} <= set(goal.forbidden)
    goal = goal_of(suite, Target((Concept("object", "Dogs"),)), suite.request("Van_Gogh", "Dogs", 188, 4), False)
    assert {"Dogs", "dog", "puppy"} <= set(goal.forbidden)


def test_all_synonyms_are_of_concepts_that_there_are() -> None:
    suite = registry.suite("unlearncanvas")
    assert set(SYNONYMS) <= {concept.name for concept in suite.concepts}
    assert all(suite.synonyms(concept) for concept in suite.concepts if concept.kind == "object")


def test_a_budget_leaves_out_concepts_only_where_the_preset_has_enough() -> None:
    every = [Target((concept,)) for concept in SUITE.concepts]
    six = parse_targets(",".join(SUITE.presets["quick"].concepts), SUITE)
    assert set(attacked_targets(SUITE, every, "quick")) == set(six)
    assert attacked_targets(SUITE, every, "full") == every
    few = parse_targets("neon,house", SUITE)
    assert attacked_targets(SUITE, few, "quick") == list(few), "whoever names concepts has them attacked"


def test_goals_of_the_unedited_model_name_the_anchor() -> None:
    (goal, *_), (other, *_) = goals(), goals(unedited=True)
    assert goal.request == goal.original == other.original
    assert other.request.prompt == "A nothing image in neon style."
    assert {"fish", "trout"} <= set(goal.forbidden)
    style = goal_of(SUITE, Target((Concept("style", "neon"),)), SUITE.request("neon", "fish", 1, STEPS), True)
    assert style.request.prompt == "A fish image in photo style."
