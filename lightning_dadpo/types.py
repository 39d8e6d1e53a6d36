"""The small tensors that rooms hand to one another. Log-probabilities are natural logs, in nats."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["SequenceLogProbs", "PairLogProbs", "SequenceBatch", "PackedBatch", "PairBatch", "ResponseBatch"]

Batch = TypeVar("Batch", bound="_Movable")


class _Movable:
    """Moves every tensor of a dataclass; Lightning calls `to` on batches that have it."""

    def to(self: Batch, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor | _Movable)
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class SequenceLogProbs(_Movable):
    """log pi(y|x) of whole responses, carried with their lengths so that nobody has to guess which was meant.

    Attributes:
        total: sum over the response tokens, in nats; float32 or wider.
        num_tokens: response tokens in that sum, the emitted end-of-turn token included.
    """

    total: Float[Tensor, " sequences"]
    num_tokens: Int[Tensor, " sequences"]

    def __getitem__(self, rows: slice | Tensor) -> SequenceLogProbs:
        return SequenceLogProbs(self.total[rows], self.num_tokens[rows])

    def detach(self) -> SequenceLogProbs:
        """The same numbers outside autograd."""
        return SequenceLogProbs(self.total.detach(), self.num_tokens)

    @property
    def mean(self) -> Float[Tensor, " sequences"]:
        """Nats per token."""
        return self.total / self.num_tokens


@dataclass(frozen=True)
class PairLogProbs(_Movable):
    """What one model gives to the chosen and to the rejected response of each pair."""

    chosen: SequenceLogProbs
    rejected: SequenceLogProbs

    @property
    def gap(self) -> Float[Tensor, " pairs"]:
        """D = log pi(y_w) - log pi(y_l), in nats: subtracted within one model, so that large sums cancel first."""
        wide = torch.promote_types(self.chosen.total.dtype, torch.float32)
        return self.chosen.total.to(wide) - self.rejected.total.to(wide)

    def detach(self) -> PairLogProbs:
        """The same numbers outside autograd."""
        return PairLogProbs(self.chosen.detach(), self.rejected.detach())

    @staticmethod
    def split(both: SequenceLogProbs) -> PairLogProbs:
        """From sequences ordered as `PairBatch.sequences` orders them: all chosen, then all rejected."""
        pairs = both.total.shape[0] // 2
        return PairLogProbs(both[:pairs], both[pairs:])


@dataclass(frozen=True)
class SequenceBatch(_Movable):
    """Prompts with their responses, padded on the right: what the readable kernel reads, the oracle of the packed one.

    Masks come from lengths, never from ids.

    Attributes:
        input_ids: prompt ids followed by response ids; what stands after `lengths` is padding.
        prompt_lengths: tokens of each prompt; the first response token stands at this index.
        lengths: tokens of prompt and response together.
    """

    input_ids: Int[Tensor, "sequences length"]
    prompt_lengths: Int[Tensor, " sequences"]
    lengths: Int[Tensor, " sequences"]

    @property
    def attention_mask(self) -> Int[Tensor, "sequences length"]:
        """1 on real tokens, 0 on padding."""
        positions = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return (positions[None, :] < self.lengths[:, None]).long()

    @property
    def num_response_tokens(self) -> Int[Tensor, " sequences"]:
        """Response tokens of each row."""
        return self.lengths - self.prompt_lengths


@dataclass
class PackedBatch(_Movable):
    """Token trees laid end to end: every token that has to be computed, once, and nothing else.

    A tree is what its sequences begin with in common, token for token (the prefix), and a branch for what each goes
    on with. Trees whose prompts begin alike, with one system prompt for instance, go on from a stem that holds this.
    Branches do not see each other, nor do trees; the positions of each go on from what it goes on from. The last token
    of a sequence predicts nothing, so it is a target but no input. Trunk, head and loss see no padding.

    Attributes:
        token_ids: stem after stem, behind each its trees, in each the prefix and then its branches.
        position_ids: place of each token in its own sequence.
        stems: for each its tokens, and how many trees go on from it. It may have no token, where nothing is shared;
            it never holds the last token of a prompt.
        shapes: for each tree the tokens of its prefix behind the stem and of each branch; a branch may have none.
        predicted_by: index of the token whose state makes each prediction. The first token of every branch is
            predicted by the last state of the prefix.
        targets: the ids that are predicted, each a token of some response.
        terms: predictions, each named once for every sequence that it belongs to: two sequences share those of the
            response tokens that they begin with in common.
        owners: the sequence of each of `terms`.
        num_response_tokens: tokens of each sequence's response.
    """

    token_ids: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    stems: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]
    predicted_by: Int[Tensor, " predictions"]
    targets: Int[Tensor, " predictions"]
    terms: Int[Tensor, " terms"]
    owners: Int[Tensor, " terms"]
    num_response_tokens: Int[Tensor, " sequences"]

    @property
    def num_tokens(self) -> int:
        """Tokens that the trunk computes."""
        return sum(stem for stem, _ in self.stems) + sum(map(sum, self.shapes))

    @property
    def num_slots(self) -> int:
        """Tokens that attention computes where it lays stems, and trees, out as rows padded to the longest."""
        stems, trees = [stem for stem, _ in self.stems if stem], list(map(sum, self.shapes))
        return len(stems) * max(stems, default=0) + len(trees) * max(trees)


@dataclass
class PairBatch(_Movable):
    """One micro-batch of preference pairs.

    Attributes:
        pair_ids: one content digest a pair; what the score cache is looked up by.
        sequences: a tree a pair; 2 x pairs sequences, all chosen ones first, then all rejected ones.
        weights: 1 for a pair; 0 for a filler that keeps every rank at the same number of micro-batches.
        pairs_in_step: real pairs of the whole optimizer step, over all micro-batches and ranks.
        real_tokens: tokens of prompts and responses of the pairs that count, the prompt once for each response.
    """

    pair_ids: tuple[str, ...]
    sequences: PackedBatch
    weights: Float[Tensor, " pairs"]
    pairs_in_step: int
    real_tokens: int = 0

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass
class ResponseBatch(_Movable):
    """One micro-batch for supervised fine-tuning.

    Attributes:
        response_ids: one content digest a row.
        sequences: a tree and a sequence a response.
        weights: 1 for a response, 0 for a filler.
        tokens_in_step: response tokens of the whole optimizer step, over all micro-batches and ranks.
        responses_in_step: responses of the whole optimizer step.
        real_tokens: tokens of prompts and responses that count.
        ids: the prompt's and the response's ids of each row, as Python numbers; what other responses are sampled from.
    """

    response_ids: tuple[str, ...]
    sequences: PackedBatch
    weights: Float[Tensor, " sequences"]
    tokens_in_step: int
    responses_in_step: int
    real_tokens: int = 0
    ids: tuple[tuple[list[int], list[int]], ...] = ()

    def __len__(self) -> int:
        return len(self.response_ids)
