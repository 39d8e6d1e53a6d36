"""Scores that others know: IFEval, MT-bench in two turns, and whatever lm-eval has a task for."""
