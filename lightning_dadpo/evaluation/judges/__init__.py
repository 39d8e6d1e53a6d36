"""Judges of two responses: a chat model behind a server, a reward model, a language model's likelihood."""

from lightning_dadpo.evaluation.judges.base import Comparison, Judge, Preference

__all__ = ["Comparison", "Judge", "Preference"]
