"""The preset that sets all at once what public code does otherwise than its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.api import MethodConfig


class PresetConfig(MethodConfig):
    """Parameters of methods whose public code has defects that are options here."""

    published: ClassVar[Mapping[str, Any]] = {}
    """What `preset=published-code` sets, unless it is given."""

    preset: Literal["corrected", "published-code"] = Field(
        "corrected", description="published-code: as UnlearnCanvas' public script does it, defects and all (docs/methods.md)."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "published-code":
            return {**cls.published, **values}
        return values
