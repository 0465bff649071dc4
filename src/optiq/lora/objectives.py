"""What training makes small: the likelihood of replies (SFT), or the wrong order of two replies (DPO, IPO).

    sft        - sum log p(token) / T                               T the tokens of the step that carry loss
    sigmoid    - (1 - e) log sigma(beta h) - e log sigma(-beta h)   h = log p(chosen) - log p(rejected), less that without adapter
    ipo        (h - 1 / (2 beta))^2                                 log p here: the mean over the reply's tokens

A batch of preferences has chosen and rejected in turn. Each objective is a sum over a batch divided by a total that the step
knows beforehand, so that batches of a step add up.

Source: DPO arXiv 2305.18290 equation 7; label smoothing e: arXiv 2306.02561 (cDPO); IPO arXiv 2310.12036 equation 17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import mlx.core as mx

from optiq.lora.batches import Batch
from optiq.lora.learner import Dropout, Learner, Parameters
from optiq.lora.settings import Settings


class Objective(Protocol):
    """What training makes small."""

    @property
    def unit(self) -> int:
        """Samples that belong together."""
        ...

    def weight(self, batch: Batch) -> int:
        """What a batch counts in its step."""
        ...

    def prepare(self, batch: Batch) -> mx.array | None:
        """What is needed of the model without adapters."""
        ...

    def __call__(
        self, parameters: Parameters | None, batch: Batch, prepared: mx.array | None, dropout: Dropout | None
    ) -> tuple[mx.array, mx.array]:
        """The sum over a batch, and a second sum that is only reported."""
        ...


class Sft:
    """Negative log-likelihood per token, in nats."""

    unit = 1

    def __init__(self, learner: Learner, settings: Settings) -> None:
        self._learner = learner

    def weight(self, batch: Batch) -> int:
        """What a batch counts in its step."""
        return len(batch.targets)

    def prepare(self, batch: Batch) -> mx.array | None:
        """What is needed of the model without adapters."""
        return None

    def __call__(
        self, parameters: Parameters | None, batch: Batch, prepared: mx.array | None, dropout: Dropout | None
    ) -> tuple[mx.array, mx.array]:
        """The sum over the batch; a second sum that is only reported: the same."""
        hidden = self._learner.hidden(parameters, batch, dropout)
        found = self._learner.losses(parameters, hidden, batch).sum()
        return found, found


class Dpo:
    """The loss of pairs; the reference is the same weights without adapters."""

    unit = 2

    def __init__(self, learner: Learner, settings: Settings) -> None:
        self._learner, self._beta, self._kind = learner, settings.dpo_beta, settings.dpo_loss
        self._smoothing = settings.label_smoothing

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.samples) // 2

    def prepare(self, batch: Batch) -> mx.array | None:
        """Log-likelihoods without adapters, [N]."""
        found = self._likelihoods(None, batch, None)
        mx.eval(found)
        return found

    def __call__(
        self, parameters: Parameters | None, batch: Batch, prepared: mx.array | None, dropout: Dropout | None
    ) -> tuple[mx.array, mx.array]:
        """The sum over the pairs; the sum of the margins beta h."""
        assert prepared is not None
        gained = self._likelihoods(parameters, batch, dropout) - prepared
        h = gained[0::2] - gained[1::2]
        if self._kind == "ipo":
            loss = (h - 0.5 / self._beta).square()
        else:
            right, wrong = -mx.logaddexp(0, -self._beta * h), -mx.logaddexp(0, self._beta * h)
            loss = -(1 - self._smoothing) * right - self._smoothing * wrong
        return loss.sum(), self._beta * h.sum()

    def _likelihoods(self, parameters: Parameters | None, batch: Batch, dropout: Dropout | None) -> mx.array:
        """[N] float32 in nats, of whole replies; for IPO per token."""
        losses = self._learner.losses(parameters, self._learner.hidden(parameters, batch, dropout), batch)
        mine = batch.owners[None] == mx.arange(len(batch.samples))[:, None]
        found = -mx.where(mine, losses[None], 0).sum(axis=1)
        return found / mine.sum(axis=1) if self._kind == "ipo" else found


OBJECTIVES: dict[str, Callable[[Learner, Settings], Objective]] = {"sft": Sft, "dpo": Dpo}
