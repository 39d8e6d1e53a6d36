"""What candidates answered to a benchmark's prompts, refused where no comparison is fair."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.answers import Answers, check_same_sampler
from lightning_dadpo.evaluation.bootstrap import Interval

__all__ = ["check_one_sampler", "with_interval"]


def check_one_sampler(candidates: list[Answers]) -> None:
    """Refuse candidates that were sampled in different ways, or that answered different prompts.

    Raises:
        ConfigError: there is none.
        DataError: naming the folder, and the setting with both values or the first such prompt.
    """
    if not candidates:
        raise ConfigError("candidates: none given, expected at least one")
    check_same_sampler(candidates)
    first = candidates[0]
    for other in candidates[1:]:
        if lacking := sorted(first.rows.keys() ^ other.rows.keys()):
            has, lacks = (first, other) if lacking[0] in first.rows else (other, first)
            raise DataError(
                f"{lacks.folder}: {lacks.name} answered other prompts than {has.name} "
                f"({len(lacking)} differ; {lacking[0]!r} is in {has.folder}, not in {lacks.folder})"
            )


def with_interval(estimates: Mapping[str, Interval | None]) -> dict[str, float | None]:
    """Every estimate X as X, X_low and X_high; null where there was nothing to estimate it from."""
    found: dict[str, float | None] = {}
    for name, one in estimates.items():
        values = (None, None, None) if one is None else (one.value, one.low, one.high)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return found
