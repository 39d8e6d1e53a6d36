"""What the scores of the frozen models say of the pairs: does the teacher agree, which pairs does it dispute, and what
is left of its differences under an objective's weights. No model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dadpo.data.analysis import ALL, Agreement, Disputed, PairAnalysis, Saturated, Spread
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import PairRow, ScoreRow, read_rows
from lightning_dadpo.evaluation.bootstrap import ratio_interval
from lightning_dadpo.scoring.audit import saturation
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

__all__ = ["analyse_pairs", "MOST_DISPUTED"]

MOST_DISPUTED = 10
REFERENCE = "reference"


class _Pair(NamedTuple):
    """What is kept of a pair; its texts stay on disk. `place` is its place in the artefact."""

    place: int
    pair_id: str
    prompt_id: str
    split: str


def analyse_pairs(
    name: str,
    pairs: str | Path,
    scores: Mapping[str, str | Path],
    betas: Mapping[str, Mapping[str, float]],
    resamples: int = 2000,
) -> PairAnalysis:
    """Analyse one artefact of pairs.

    Pairs that some anchor has no score for are counted and left out.

    Args:
        name: what the pairs are called.
        pairs: the artefact.
        scores: scores artefact by anchor.
        betas: by objective, its weights by anchor. One with an anchor that was not scored is left out.
        resamples: bootstrap draws over prompts.

    Raises:
        ArtifactError: a folder is no such artefact. DataError: a row of it is none.
    """
    found = {anchor: _read_scores(Path(folder)) for anchor, folder in scores.items()}
    store = read_pairs(pairs)
    rows = [_Pair(place, row.pair_id, row.prompt_id, row.split) for place, row in enumerate(store)]
    scored = [row for row in rows if all(row.pair_id in one for one in found.values())] if found else []
    analysis = PairAnalysis(name, len(rows), len(rows) - len(scored))
    if not scored:
        return analysis
    anchors = {anchor: _log_probs(scored, one) for anchor, one in found.items()}
    splits = _splits(scored)
    for anchor in anchors:
        analysis.agreement[anchor] = {
            split: _agreement([scored[place] for place in places.tolist()], _part(anchors[anchor], places), resamples)
            for split, places in splits.items()
        }
        if anchor != REFERENCE:
            analysis.disputed[anchor] = _disputed(store, scored, anchors, anchor)
    if REFERENCE in anchors:
        _saturation(analysis, anchors, splits, betas)
    return analysis


def _read_scores(folder: Path) -> dict[str, ScoreRow]:
    read_manifest(folder, "scores")
    return {row.pair_id: row for row in read_rows(folder / "rows.jsonl", ScoreRow)}


def _log_probs(pairs: Sequence[_Pair], scores: Mapping[str, ScoreRow]) -> PairLogProbs:
    """An anchor's log-probs in the order of the pairs, looked up by id (trap C2), float64 as they were written."""
    rows = [scores[pair.pair_id] for pair in pairs]
    chosen = torch.tensor([row.chosen_log_prob for row in rows], dtype=torch.float64)
    rejected = torch.tensor([row.rejected_log_prob for row in rows], dtype=torch.float64)
    return PairLogProbs(
        SequenceLogProbs(chosen, torch.tensor([row.chosen_num_tokens for row in rows])),
        SequenceLogProbs(rejected, torch.tensor([row.rejected_num_tokens for row in rows])),
    )


def _splits(pairs: Sequence[_Pair]) -> dict[str, Tensor]:
    """Places of the pairs of each split, all of them first; one split alone is not named twice."""
    names = list(dict.fromkeys(pair.split for pair in pairs))
    places = {ALL: torch.arange(len(pairs))}
    for name in names if len(names) > 1 else []:
        places[name] = torch.tensor([place for place, pair in enumerate(pairs) if pair.split == name])
    return places


def _part(scores: PairLogProbs, places: Tensor) -> PairLogProbs:
    return PairLogProbs(scores.chosen[places], scores.rejected[places])


def _agreement(pairs: Sequence[_Pair], scores: PairLogProbs, resamples: int) -> Agreement:
    """Prompts are resampled whole: the pairs of one prompt are not independent of one another."""
    gaps = scores.gap
    preferred: dict[str, float] = {}
    asked: dict[str, int] = {}
    for pair, gap in zip(pairs, gaps.tolist(), strict=True):
        preferred[pair.prompt_id] = preferred.get(pair.prompt_id, 0.0) + (1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
        asked[pair.prompt_id] = asked.get(pair.prompt_id, 0) + 1
    interval = ratio_interval(list(preferred.values()), list(asked.values()), resamples=resamples)
    longer = scores.chosen.num_tokens > scores.rejected.num_tokens
    return Agreement(
        pairs=len(pairs),
        prompts=len(asked),
        ties=int((gaps == 0).sum()),
        share=interval.value,
        low=interval.low,
        high=interval.high,
        against=int((gaps < 0).sum()),
        against_longer=int(((gaps < 0) & longer).sum()),
    )


def _disputed(
    store: Sequence[PairRow], pairs: Sequence[_Pair], anchors: Mapping[str, PairLogProbs], anchor: str
) -> list[Disputed]:
    """The pairs whose rejected response the anchor prefers by the most nats."""
    gaps = {name: scores.gap.tolist() for name, scores in anchors.items()}
    against = [at for at, gap in enumerate(gaps[anchor]) if gap < 0]
    worst = sorted(against, key=lambda at: gaps[anchor][at])[:MOST_DISPUTED]
    return [_dispute(store[pairs[at].place], {name: values[at] for name, values in gaps.items()}) for at in worst]


def _dispute(row: PairRow, gaps: dict[str, float]) -> Disputed:
    return Disputed(
        pair_id=row.pair_id,
        prompt_id=row.prompt_id,
        split=row.split,
        messages=row.messages,
        chosen_text=row.chosen_text,
        rejected_text=row.rejected_text,
        chosen_tokens=len(row.chosen_token_ids),
        rejected_tokens=len(row.rejected_token_ids),
        gaps=gaps,
    )


def _saturation(
    analysis: PairAnalysis,
    anchors: Mapping[str, PairLogProbs],
    splits: Mapping[str, Tensor],
    betas: Mapping[str, Mapping[str, float]],
) -> None:
    """Spread of each anchor and saturation of each objective, both from `scoring.audit.saturation`."""
    for split, places in splits.items():
        part = {name: _part(scores, places) for name, scores in anchors.items()}
        for anchor in (name for name in anchors if name != REFERENCE):
            said = saturation({REFERENCE: part[REFERENCE], "teacher": part[anchor]}, {})
            analysis.spread.setdefault(anchor, {})[split] = Spread(said.quartiles, said.advised_beta_teacher)
        for objective, weights in betas.items():
            if weights.keys() <= anchors.keys():
                asked = {**part, "teacher": part.get("teacher", part[REFERENCE])}  # `saturated` looks at weights alone
                share = saturation(asked, weights).saturated
                if share is not None:
                    known = analysis.saturated.setdefault(objective, Saturated(dict(weights), {}))
                    known.shares[split] = share
