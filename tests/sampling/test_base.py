"""Settings that define no sampler are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.sampling.base import SamplerSettings, prompt_seed, seed_key


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


def test_the_first_response_is_seeded_by_its_prompt_alone_and_every_further_one_apart() -> None:
    """As it was before there were further ones, so that rows drawn then and now are the same."""
    assert prompt_seed(3, seed_key("p", 0)) == int(content_digest(3, "p"), 16) >> 1
    assert len({prompt_seed(3, seed_key("p", candidate)) for candidate in range(9)}) == 9
