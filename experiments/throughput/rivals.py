"""The other side: daDPO as a subclass of a plain DPO trainer would do it, and TRL's own DPOTrainer.

TRL is given token ids, never text, and is timed through its own `training_step` on batches of its own collator:
neither side pays for data loading, logging or callbacks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.throughput.setting import (
    BETA_REFERENCE,
    BETA_TEACHER,
    Setting,
    chunks,
    optimizer_of,
)
from experiments.throughput.workload import Pair, examples, pair_rows
from lightning_dadpo.data.batching import collate_sequences
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import dadpo_loss
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.types import PairLogProbs, SequenceBatch, SequenceLogProbs

__all__ = ["Online", "Trl", "load_plain", "padded", "import_trl", "full_logits_log_probs"]


def load_plain(setting: Setting, spec: ModelSpec, precision: Precision = "32-true") -> Any:
    """A model as anyone loads it: float32 weights unless said otherwise, transformers' SDPA, no packing."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec.path, dtype=dtype, attn_implementation="sdpa")
    return model.to(setting.device)


def padded(pairs: Sequence[Pair]) -> SequenceBatch:
    """Right-padded rows, all chosen ones first."""
    rows = pair_rows(pairs)
    prompts = [row.prompt_token_ids for row in rows] * 2
    return collate_sequences(prompts, [row.chosen_token_ids for row in rows] + [row.rejected_token_ids for row in rows])


def full_logits_log_probs(model: Any, batch: SequenceBatch) -> PairLogProbs:
    """Logits at every position, then the log-prob of every next token, then a mask: the textbook's way."""
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    logits, targets = logits[:, :-1].float(), batch.input_ids[:, 1:]
    log_probs = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(dim=-1)
    index = torch.arange(1, batch.input_ids.shape[1], device=targets.device)[None]
    mask = (index >= batch.prompt_lengths[:, None]) & (index < batch.lengths[:, None])
    return PairLogProbs.split(SequenceLogProbs((log_probs * mask).sum(dim=1), batch.num_response_tokens))


class Online:
    """daDPO whose reference and teacher are asked anew in every step.

    Args:
        setting: models and machine.
        micro_batch: pairs of a forward pass.
        live: frozen models kept in memory; without one its scores are taken as given (rungs of the ladder).
    """

    def __init__(self, setting: Setting, micro_batch: int, live: bool = True) -> None:
        self.setting, self.micro_batch = setting, micro_batch
        self.model = load_plain(setting, setting.student).train()
        self.optimizer = optimizer_of(self.model)
        self.frozen = {
            name: load_plain(setting, spec).requires_grad_(False).eval()
            for name, spec in {"reference": setting.student, "teacher": setting.teacher}.items()
            if live
        }
        self.scores: dict[int, dict[str, PairLogProbs]] = {}

    def anchors(self, batch: SequenceBatch) -> dict[str, PairLogProbs]:
        """Log-probs of the frozen models, computed here and now."""
        with torch.no_grad():
            return {name: full_logits_log_probs(model, batch) for name, model in self.frozen.items()}

    def loss(self, part: Sequence[Pair], step_pairs: int) -> Tensor:
        """The micro-batch's part of the step's mean."""
        batch = padded(part).to(self.setting.device)
        with self.setting.autocast():
            policy = full_logits_log_probs(self.model, batch)
            anchors = self.anchors(batch) if self.frozen else dict.fromkeys(("reference", "teacher"), policy.detach())
        losses = dadpo_loss(policy, **anchors, beta_reference=BETA_REFERENCE, beta_teacher=BETA_TEACHER)
        return losses.sum() / step_pairs

    def step(self, pairs: Sequence[Pair]) -> None:
        """One optimizer step."""
        for part in chunks(pairs, self.micro_batch):
            self.loss(part, len(pairs)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def import_trl() -> Any:
    """TRL's module of the trainer.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import datasets
        from trl.trainer import dpo_config, dpo_trainer
    except ImportError as error:
        raise ConfigError(
            f"the benchmark's rival is missing ({error}): pip install -e '.[dev]', or name rows that need no TRL"
        ) from error
    datasets.disable_progress_bars()
    return dpo_config, dpo_trainer


def _tokenizer() -> Any:
    """TRL asks for a tokenizer for its padding id alone; no text ever comes near it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<a>": 0, "<b>": 1, "<pad>": 2}, unk_token="<a>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


class Trl:
    """TRL's DPOTrainer on pairs of token ids.

    Args:
        setting: models and machine.
        pairs: what `precompute` scores; the trainer wants a data set.
        micro_batch: pairs of a forward pass.
        defaults: TRL's own defaults (reference in memory, gradient checkpointing); otherwise TRL at its best
            (reference scored before, no checkpointing).
        frozen: a model and its number format, to be scored with instead of the student; nothing is precomputed.
    """

    def __init__(
        self,
        setting: Setting,
        pairs: Sequence[Pair],
        micro_batch: int,
        defaults: bool,
        frozen: tuple[ModelSpec, Precision] | None = None,
    ) -> None:
        from datasets import Dataset

        dpo_config, dpo_trainer = import_trl()
        self.setting, self.micro_batch = setting, micro_batch
        precomputed = not defaults and frozen is None

        class TokenIds(dpo_trainer.DPOTrainer):  # type: ignore[misc, name-defined]
            """The data set holds token ids already; TRL 1.16 has no other way in than text."""

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

        arguments = dpo_config.DPOConfig(
            output_dir=str(Path(setting.folder) / "trl"),
            beta=BETA_REFERENCE + BETA_TEACHER,
            max_length=None,  # nothing here is long enough to be cut
            per_device_train_batch_size=micro_batch,
            bf16=setting.precision == "bf16-mixed",
            use_cpu=setting.device.type == "cpu",
            gradient_checkpointing=defaults,
            precompute_ref_log_probs=precomputed,
            max_grad_norm=0.0,  # no clipping on any side
            report_to="none",
            disable_tqdm=True,
        )
        with _quiet():
            self.trainer = TokenIds(
                model=load_plain(setting, setting.student),
                ref_model=None if precomputed else load_plain(setting, *(frozen or (setting.student,))),
                args=arguments,
                train_dataset=Dataset.from_list(examples(pairs)),
                processing_class=_tokenizer(),
            )
        trainer = self.trainer
        if defaults:  # as Trainer.train does before its first step
            trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=None)
        self.model = trainer.accelerator.prepare_model(trainer.model)
        self.optimizer = optimizer_of(trainer.model)
        self.rows = list(trainer.train_dataset)

    def batches(self, pairs: int) -> list[dict[str, Tensor]]:
        """The first pairs of the data set in its order, by TRL's own collator."""
        rows, size = self.rows[:pairs], self.micro_batch
        return [self.trainer.data_collator(rows[start : start + size]) for start in range(0, len(rows), size)]

    def step(self, pairs: Sequence[Pair]) -> None:
        """One optimizer step over as many of its pairs."""
        batches = self.batches(len(pairs))
        self.trainer.current_gradient_accumulation_steps = len(batches)
        for batch in batches:
            self.trainer.training_step(self.model, batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def log_probs(self, pairs: int) -> PairLogProbs:
        """What TRL's own scoring gives to its first pairs."""
        model, scores = self.trainer.ref_model or self.trainer.model, []
        for batch in self.batches(pairs):
            inputs = self.trainer._prepare_inputs(batch)
            scores.append(self.trainer.compute_ref_log_probs(model, inputs))
        counts = [torch.tensor([len(row[key]) for row in self.rows[:pairs]]) for key in ("chosen_ids", "rejected_ids")]
        chosen, rejected = (
            SequenceLogProbs(torch.cat([score[side].cpu() for score in scores]), counts[side]) for side in (0, 1)
        )
        return PairLogProbs(chosen, rejected)

    def loss(self, pairs: int) -> float:
        """The loss of its next step, without taking it."""
        with torch.no_grad():
            losses = [
                self.trainer.compute_loss(self.model, self.trainer._prepare_inputs(batch)).item()
                * len(batch["input_ids"])
                for batch in self.batches(pairs)
            ]
        return float(sum(losses) / (2 * pairs))


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the notes that TRL and transformers write about a small data set."""
    import logging

    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(logging.NOTSET)
