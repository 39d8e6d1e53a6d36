"""Pure losses over small tensors. Torch only."""

from lightning_dadpo.losses.anchored import (
    anchored_margin,
    check_betas,
    dadpo_loss,
    dpo_loss,
    implicit_reward,
    preference_loss,
)
from lightning_dadpo.losses.divergences import (
    jensen_shannon_divergence,
    kl_divergence,
    skew_kl_divergence,
    skew_reverse_kl_divergence,
)
from lightning_dadpo.losses.objectives import (
    DPO,
    IPO,
    AnchoredPreference,
    ConservativeDPO,
    DaDPO,
    HingePreference,
    PreferenceObjective,
    PreferenceOutcome,
    RobustDPO,
    SimPO,
)
from lightning_dadpo.losses.preference_links import (
    conservative_loss,
    hinge_loss,
    ipo_loss,
    robust_loss,
    simpo_loss,
    simpo_reward,
)
from lightning_dadpo.losses.responses import (
    ForwardKL,
    JensenShannon,
    PairTerm,
    ResponseLoss,
    ResponseNLL,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TokenDivergence,
    WeightedTerm,
)
from lightning_dadpo.losses.supervised import response_nll, response_nll_per_token

__all__ = [
    "anchored_margin", "preference_loss", "implicit_reward", "dadpo_loss", "dpo_loss", "check_betas",
    "PreferenceObjective", "PreferenceOutcome", "AnchoredPreference", "DaDPO", "DPO",
    "IPO", "RobustDPO", "ConservativeDPO", "HingePreference", "SimPO",
    "ipo_loss", "robust_loss", "conservative_loss", "hinge_loss", "simpo_loss", "simpo_reward",
    "kl_divergence", "jensen_shannon_divergence", "skew_kl_divergence", "skew_reverse_kl_divergence",
    "ResponseLoss", "ResponseNLL", "TokenDivergence", "ForwardKL", "ReverseKL", "JensenShannon", "SkewForwardKL",
    "SkewReverseKL", "WeightedTerm", "PairTerm", "response_nll", "response_nll_per_token",
]  # fmt: skip
