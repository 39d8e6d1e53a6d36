"""Models whose weights lie spread over ranks: what FSDP2 and DeepSpeed ZeRO-3 ask of a transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_dadpo.models.pruning import decoder_layers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["partitioned_while_loading", "whole_while_written", "shard_layers"]


@contextmanager
def partitioned_while_loading(config: dict[str, Any]) -> Iterator[None]:
    """Inside the context transformers hands each weight to ZeRO-3 as it is read, and no rank ever holds a whole model.

    Args:
        config: DeepSpeed's, complete.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(config)  # transformers holds a weak reference only
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # or every later model, a teacher's audit for one, would be partitioned too
        del kept


@contextmanager
def whole_while_written(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the context weights that ZeRO-3 has partitioned are whole; what rank 0 writes into them is what all get.

    Without it an initialisation would be lost in silence: it would be made in an empty tensor.
    """
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0):
        yield


def shard_layers(model: Any, mesh: DeviceMesh) -> None:
    """FSDP2: one group of parameters a decoder layer, and one for embeddings, last norm and head.

    The head stays with the embeddings, which it may be tied to, so their group is the whole model's: its weights are
    gathered when the model's own forward begins. They are let go when it ends, which is not FSDP2's default for the
    outermost group: a frozen model has no backward pass that would do it.

    Raises:
        ConfigError: the decoder layers are not where they are expected.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
