"""daDPO on PyTorch Lightning: preference distillation that uses the teacher's probabilities.

The package imports nothing heavy by itself; each room is imported by its own name
(`lightning_dadpo.losses`, `lightning_dadpo.training`, ...).
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
