"""The stage `dadpo mix`: the pairs of a round, and again a share of those of earlier rounds, as one pairs artefact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import Manifest, draft, finished, read_manifest
from lightning_dadpo.data.rows import PairRow, RowWriter, content_digest, read_rows
from lightning_dadpo.errors import ConfigError

__all__ = ["Mixed", "mix", "mix_pairs"]

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Mixed:
    """Pairs to train on, the latest first, and how many came from where.

    Attributes:
        pairs: each once.
        counts: `pairs`; `latest` and `earlier` among them; `repeated`: earlier pairs that were drawn and stand among
            the others already.
    """

    pairs: list[PairRow]
    counts: dict[str, int]


def mix(latest: Iterable[PairRow], earlier: Sequence[Iterable[PairRow]], share: float, seed: int) -> Mixed:
    """All of the latest pairs, and of each earlier artefact's training pairs this share, drawn by their content.

    Validation pairs are the latest ones alone, so that a round is measured on what it is about.

    Args:
        latest: pairs of this round.
        earlier: pairs of each round before it.
        share: of the training pairs of each, rounded to the nearest whole number (a half to the even one).
        seed: decides which.
    """
    pairs = {pair.pair_id: pair for pair in latest}
    counts = {"pairs": 0, "latest": len(pairs), "earlier": 0, "repeated": 0}
    for rows in earlier:
        training = sorted(
            (pair for pair in rows if pair.split == "train"), key=lambda pair: content_digest(seed, pair.pair_id)
        )
        for pair in training[: round(share * len(training))]:
            counts["repeated" if pair.pair_id in pairs else "earlier"] += 1
            pairs.setdefault(pair.pair_id, pair)
    return Mixed(list(pairs.values()), counts | {"pairs": len(pairs)})


def mix_pairs(latest: str, earlier: list[str], out: str, share: float = 1.0, seed: int = 0) -> Path:
    """Put pairs of several rounds together; a finished artefact is left as it is.

    Args:
        latest: pairs folder of this round: all of it is taken.
        earlier: pairs folders of earlier rounds.
        out: folder to make; complete or absent.
        share: of each earlier folder's training pairs, those that are trained on again.
        seed: decides which.

    Raises:
        ConfigError: a share out of (0, 1].
        ArtifactError: an input is no complete pairs artefact, or `out` holds something else.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share {share}: expected a number in (0, 1]")
    manifests = [read_manifest(folder, "pairs") for folder in (latest, *earlier)]
    made_from: dict[str, Any] = {
        "latest": manifests[0].files[ROWS],
        "earlier": [manifest.files[ROWS] for manifest in manifests[1:]],
        "share": share,
        "seed": seed,
        **_sampled_by(manifests),
    }
    if finished(out, "pairs", made_from):
        return Path(out)
    mixed = mix(_rows(latest), [_rows(folder) for folder in earlier], share, seed)
    with draft(out, "pairs", made_from) as work:
        path = work.path / ROWS
        path.unlink(missing_ok=True)  # a killed run may have left some of the same rows
        with RowWriter(path) as writer:
            writer.write(*mixed.pairs)
        work.counts = dict(mixed.counts)
    return Path(out)


def _rows(folder: str) -> Iterable[PairRow]:
    return read_rows(Path(folder) / ROWS, PairRow)


def _sampled_by(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Whose samples a side holds, where all agree: their scores are held to what the sampler saw."""
    said = {}
    for key in ("chosen_model", "rejected_model"):
        models = {manifest.made_from.get(key) for manifest in manifests}
        if len(models) == 1 and (model := models.pop()) is not None:
            said[key] = model
    return said
