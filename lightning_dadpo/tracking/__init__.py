"""Experiment tracking with wandb: which mode, runs, and a run for each stage."""
