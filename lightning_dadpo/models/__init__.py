"""The room that knows transformers: which model, loading, pruning, log-probs, export."""
