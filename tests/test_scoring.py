from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.config import parse_targets
from bench.scoring import SAMPLED_PICTURES, kept
from bench.suites.minicanvas import SUITE

TARGET = parse_targets("neon", SUITE)[0]
REQUESTS = SUITE.requests(TARGET, SUITE.presets["full"])


@given(st.lists(st.sampled_from(REQUESTS), max_size=64, unique_by=lambda r: r.id))
def test_a_sample_is_half_of_the_target_as_far_as_there_are(requests: list) -> None:
    flags = kept("sample", requests, TARGET)
    own = [flag for flag, r in zip(flags, requests, strict=True) if TARGET.involves(r.style, r.object)]
    other = [flag for flag, r in zip(flags, requests, strict=True) if not TARGET.involves(r.style, r.object)]
    assert sum(own) == min(len(own), SAMPLED_PICTURES // 2)
    assert sum(other) == min(len(other), SAMPLED_PICTURES // 2)
    assert kept("all", requests, TARGET) == [True] * len(requests)
    assert kept("none", requests, None) == [False] * len(requests)
    assert kept("sample", requests, None) == [True] * len(requests)
