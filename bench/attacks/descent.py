"""What searches by gradient share: turns of steps and judging, and Adam (Kingma & Ba 2015) on one tensor of which some rows are done."""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import MethodConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8


class TurnsConfig(MethodConfig):
    """`iterations` gradient steps with a picture judged after each `every` of them."""

    iterations: int
    every: int

    @model_validator(mode="after")
    def _judges_something(self) -> TurnsConfig:
        if self.every > self.iterations:
            raise ValueError(f"every is {self.every}, more than the {self.iterations} iterations, so that no picture would be judged")
        return self


class Adam:
    """Moments of values [n, …], rows of which leave for good: torch's own would have to be built anew for those that are left."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """What to take from rows `rows` int64 [m], whose gradient is [m, …]; every row that is left takes every step."""
        self.count += 1
        first = self.first[rows] = BETAS[0] * self.first[rows] + (1 - BETAS[0]) * gradient
        second = self.second[rows] = BETAS[1] * self.second[rows] + (1 - BETAS[1]) * gradient.square()
        first, second = first / (1 - BETAS[0] ** self.count), second / (1 - BETAS[1] ** self.count)
        return learning_rate * first / (second.sqrt() + EPSILON)
