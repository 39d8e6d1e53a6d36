"""A language model as a judge: how much likelier does the conversation make each response?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lightning_dadpo.data.chat import RenderedTurn, UnplacedTextError, render_prompt, render_turn
from lightning_dadpo.data.packing import pack, tree_tokens
from lightning_dadpo.data.plan import budgeted_batches
from lightning_dadpo.data.rows import Message
from lightning_dadpo.evaluation.judges.scoring import Answer, ScoringJudge, check_ids, positions
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.log_probs import attention_kernel, check_trunk_and_head, model_log_probs

__all__ = ["LikelihoodJudge"]

NO_PROMPT = [Message("user", "")]
"""The conversation that says nothing: all that the template prints around a question is there, the question is not."""


@dataclass(frozen=True)
class _Tree:
    """Responses as ids behind one prompt."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def tokens(self) -> int:
        return tree_tokens(self.prompt, self.responses)


class LikelihoodJudge(ScoringJudge):
    """Prefers the response of which the conversation tells a language model more, token for token.

    Let y = y_1 ... y_n be the ids of the assistant's turn as the model's own chat template prints it, its end-of-turn
    token included, x the conversation up to and with the assistant header, and o what the same template makes of a
    conversation of one user's turn without content. The score, in nats per token, is

        s(x, y) = 1/n * [ sum_t log p(y_t | x, y_<t)  -  sum_t log p(y_t | o, y_<t) ]

    which is (log p(y|x) - log p(y|o)) / n. Divided by n, it does not grow with the response ("normalised by length");
    less log p(y|o), text that is likely behind any question earns nothing ("normalised by its unconditional
    likelihood"). The ids of y are the same behind x and behind o. A judge sees text, so a response that a cap cut is
    read as a whole turn, whose end is unlikely.

    What a conversation tells of a response it tells mostly of its first tokens, so that the mean over tokens favours
    short ones: hold this judge against people (`dadpo validate-judge`) before it is believed.

    A model that is the teacher, or is used in a loss, shares the taste that is being tested: it is no impartial judge.
    The arguments are `ScoringJudge`'s; `tie_margin` is in nats per token.
    """

    kind = "likelihood"

    def scored_by(self) -> dict[str, Any]:
        """See `ScoringJudge.scored_by`; attention's kernel decides last digits too."""
        dtype = torch.float32 if self.precision == "32-true" else torch.bfloat16
        return super().scored_by() | {"attention": attention_kernel(self.model.attention, self.device, dtype)}

    @cached_property
    def _loaded(self) -> Any:
        model = load_frozen(self.model, self.precision, self.device)
        check_trunk_and_head(model, self.model.path)
        return model

    def tokens(self, answers: Sequence[Answer]) -> int:
        """See `ScoringJudge.tokens`: every response is read twice, every conversation once."""
        return sum(tree.tokens for tree in self._trees(self._turns(answers))[0])

    def read(self, answers: Sequence[Answer]) -> list[float | None]:
        """See `ScoringJudge.read`: s(x, y) in nats per token."""
        limit, nothing = positions(self._loaded), len(render_prompt(self.tokenizer, NO_PROMPT))
        turns = {
            answer: turn
            for answer, turn in self._turns(answers).items()
            if max(nothing, len(turn.prompt_token_ids)) + len(turn.response_token_ids) <= limit
        }
        trees, owners = self._trees(turns)
        check_ids(self.model, self._loaded, [ids for tree in trees for ids in (tree.prompt, *tree.responses)])
        sums = self._log_probs(trees)
        found: dict[Answer, float] = {}
        for number, group in enumerate(owners):
            for answer, given, alone in zip(group, sums[2 * number], sums[2 * number + 1], strict=True):
                found[answer] = (given - alone) / len(turns[answer].response_token_ids)
        return [found.get(answer) for answer in answers]

    def _turns(self, answers: Sequence[Answer]) -> dict[Answer, RenderedTurn]:
        """Those that the template has a place for, as ids."""
        turns: dict[Answer, RenderedTurn] = {}
        for conversation, response in answers:
            try:
                turns[conversation, response] = render_turn(self.tokenizer, conversation, response)
            except UnplacedTextError:
                continue
        return turns

    def _trees(self, turns: Mapping[Answer, RenderedTurn]) -> tuple[list[_Tree], list[list[Answer]]]:
        """Two trees for each conversation, its own prompt's and o's, and the answers that their responses are."""
        groups: dict[tuple[Message, ...], list[Answer]] = {}
        for answer in turns:
            groups.setdefault(answer[0], []).append(answer)
        nothing = render_prompt(self.tokenizer, NO_PROMPT)
        trees: list[_Tree] = []
        for group in groups.values():
            responses = [turns[answer].response_token_ids for answer in group]
            trees += [_Tree(turns[group[0]].prompt_token_ids, responses), _Tree(nothing, responses)]
        return trees, list(groups.values())

    @torch.no_grad()
    def _log_probs(self, trees: Sequence[_Tree]) -> list[list[float]]:
        """Log p of each response of each tree, in nats."""
        found: list[list[float]] = [[] for _ in trees]
        for count in sorted({len(tree.responses) for tree in trees}):
            same = [index for index, tree in enumerate(trees) if len(tree.responses) == count]
            for rows in budgeted_batches([trees[index].tokens for index in same], self.tokens_per_batch):
                batch = [same[row] for row in rows]
                packed = pack([trees[index].prompt for index in batch], [trees[index].responses for index in batch])
                totals = model_log_probs(self._loaded, packed.to(self.device)).total.double().cpu()
                for index, nats in zip(batch, totals.view(count, -1).T.tolist(), strict=True):
                    found[index] = nats
        return found
