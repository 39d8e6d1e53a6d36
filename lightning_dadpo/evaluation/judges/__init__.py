"""Judges of two responses: a chat model behind a server, a reward model, a language model's likelihood."""

from lightning_dadpo.evaluation.judges.base import Comparison, Judge, Preference
from lightning_dadpo.evaluation.judges.chat import ChatJudge
from lightning_dadpo.evaluation.judges.likelihood import LikelihoodJudge
from lightning_dadpo.evaluation.judges.reward_model import RewardModelJudge

__all__ = ["ChatJudge", "Comparison", "Judge", "LikelihoodJudge", "Preference", "RewardModelJudge"]
