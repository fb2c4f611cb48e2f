from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from bench.diffusion.schedule import DDIMSchedule
from bench.errors import BenchError


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_a_trajectory_equals_diffusers(prediction: str, to_one: bool, spacing: str, steps: int) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=to_one,
        steps_offset=1 if spacing == "leading" else 0,
        timestep_spacing=spacing,
        prediction_type=prediction,
    )
    ours = DDIMSchedule.of(scheduler, steps)
    assert ours.timesteps.tolist() == scheduler.timesteps.tolist()
    torch.manual_seed(0)
    theirs = mine = torch.randn(2, 4, 8, 8)
    for step, t in enumerate(scheduler.timesteps):
        output = torch.randn(2, 4, 8, 8)
        theirs = scheduler.step(output, t, theirs, eta=0.0).prev_sample
        mine = ours.x_scale[step] * mine + ours.out_scale[step] * output
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_cover_is_refused() -> None:
    with pytest.raises(BenchError, match="clip_sample=True"):
        DDIMSchedule.of(DDIMScheduler(clip_sample=True), 10)
    with pytest.raises(BenchError, match="choose 1 to 1000"):
        DDIMSchedule.of(DDIMScheduler(clip_sample=False), 1001)
