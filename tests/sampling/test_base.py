"""Settings that define no sampler are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.sampling.base import SamplerSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("max_new_tokens", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} {value}: expected"):
        SamplerSettings(**{name: value})
