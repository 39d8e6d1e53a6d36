"""Prompts, conversations, pairs, batches, and the folders they are kept in."""
