"""Responses drawn from a model, with the raw log-prob of each."""
