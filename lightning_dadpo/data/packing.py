"""From rows of ids to token trees without padding: whatever sequences begin with in common is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_dadpo.data.beginnings import Ids, families, shared_prefix
from lightning_dadpo.types import PackedBatch

__all__ = ["tree_tokens", "pack"]


def tree_tokens(prompt: Ids, responses: Sequence[Ids]) -> int:
    """Tokens that have to be computed for the responses to one prompt; the last one of each is never an input.

    The prompt's own tokens are shared without looking, so this costs no more than the responses' common beginning.
    """
    inputs = [response[:-1] for response in responses]
    shared = shared_prefix(inputs)
    return len(prompt) + shared + sum(len(branch) - shared for branch in inputs)


@dataclass(frozen=True)
class _Tree:
    """One prompt with its responses, as they stand in a batch that shares nothing.

    Attributes:
        ids, positions: of each token, the prefix first, then branch after branch.
        shape: tokens of the prefix and of each branch.
        predictions: (index of the predicting token, target) of each, counted from the tree's first token.
        terms: for each response the predictions that it sums.
    """

    ids: list[int]
    positions: list[int]
    shape: tuple[int, ...]
    predictions: list[tuple[int, int]]
    terms: list[list[int]]


def _tree(prompt: Ids, responses: Sequence[Ids]) -> _Tree:
    if not prompt or not all(responses):
        raise ValueError("a tree needs a prompt and responses of at least one token each")
    inputs = [response[:-1] for response in responses]
    shared = shared_prefix(inputs)
    first = len(prompt)
    ids, positions = [*prompt, *inputs[0][:shared]], list(range(first + shared))
    known: dict[tuple[int, int], int] = {}
    terms = []
    for response, tokens in zip(responses, inputs, strict=True):
        # the response token at index t is predicted by the prompt's last token, by a shared one or by its branch's own
        start = len(ids) - shared - 1
        by = [first - 1 + t if t <= shared else start + t for t in range(len(response))]
        terms.append([known.setdefault(item, len(known)) for item in zip(by, response, strict=True)])
        ids.extend(tokens[shared:])
        positions.extend(range(first + shared, first + len(tokens)))
    shape = (first + shared, *(len(tokens) - shared for tokens in inputs))
    return _Tree(ids, positions, shape, list(known), terms)


def pack(prompts: Sequence[Ids], responses: Sequence[Sequence[Ids]]) -> PackedBatch:
    """Lay trees end to end, those whose prompts begin alike behind one stem that holds what they begin with.

    Args:
        prompts: ids of each prompt, at least one token.
        responses: for each prompt its responses, as many for every prompt, each at least one token.

    Returns:
        A batch whose sequences are ordered by response first: number r of prompt p is sequence r x prompts + p.

    Raises:
        ValueError: something is empty, or prompts have different numbers of responses.
    """
    if len({len(group) for group in responses}) != 1:
        raise ValueError("every prompt of a batch needs the same number of responses")
    trees = [_tree(prompt, group) for prompt, group in zip(prompts, responses, strict=True)]
    token_ids: list[int] = []
    position_ids: list[int] = []
    targets: list[int] = []
    predicted_by, owned, shapes = [], [], []
    grown = sorted(families(prompts), key=lambda family: min(family.prompts))
    for family in grown:
        stem = family.shared
        token_ids += trees[family.prompts[0]].ids[:stem]
        position_ids += range(stem)
        for index in sorted(family.prompts):
            tree, start, first = trees[index], len(token_ids) - stem, len(targets)
            token_ids += tree.ids[stem:]
            position_ids += tree.positions[stem:]
            prefix, *branches = tree.shape
            shapes.append((prefix - stem, *branches))
            # a prompt's last token is never in the stem, so everything that predicts stands in the tree itself
            predicted_by += [start + by for by, _ in tree.predictions]
            targets += [target for _, target in tree.predictions]
            owned += [
                (first + term, number * len(trees) + index) for number, terms in enumerate(tree.terms) for term in terms
            ]
    by_number = [responses[prompt][number] for number in range(len(responses[0])) for prompt in range(len(prompts))]
    return PackedBatch(
        token_ids=torch.tensor(token_ids),
        position_ids=torch.tensor(position_ids),
        stems=tuple((family.shared, len(family.prompts)) for family in grown),
        shapes=tuple(shapes),
        predicted_by=torch.tensor(predicted_by),
        targets=torch.tensor(targets),
        terms=torch.tensor([term for term, _ in owned]),
        owners=torch.tensor([owner for _, owner in owned]),
        num_response_tokens=torch.tensor([len(response) for response in by_number]),
    )
