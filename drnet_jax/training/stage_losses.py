"""What each stage minimises: a model with everything its loss depends on."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from drnet_jax.models.drnet import DRNet
from drnet_jax.training.losses import (
    branch_cross_entropies,
    cross_entropy,
    distillation_loss,
    expected_cost,
    masked_mean,
    resource_regulariser,
)

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Loss(Protocol):
    """What a training step differentiates with respect to `params`."""

    def __call__(
        self, params: Any, collections: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """The loss of a batch in training mode.

        Args:
          params: parameters of the model.
          collections: its BatchNorm statistics, a collection a resolution.
          batch: `image` `[n, h, w, 3]` as the network takes it, `label` `[n]`, and optionally
            `mask` `[n]` bool; samples marked False count nowhere.
          key: of all noise.
          step: steps done in this stage, a scalar.

        Returns:
          The loss, and the updated collections with the metrics, scalars or `[m]` arrays.
        """


@dataclass(frozen=True)
class PretrainLoss:
    """Stage 1: the sum of the cross-entropies at all resolutions, and of their distillation.

    Attributes:
      model: the network, whose predictor is not used.
      label_smoothing: of the cross-entropies.
      distillation: weight of `distillation_loss`; 0: none.
      teacher: of `distillation_loss`.
    """

    model: DRNet
    label_smoothing: float = 0.0
    distillation: float = 0.0
    teacher: str = "ensemble"

    def __call__(
        self, params: Any, collections: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """See `Loss`; nothing is random, and all steps are alike."""
        del key, step
        mask = batch.get("mask")
        branch_logits, updated = self.model.apply(
            {"params": params, **collections},
            batch["image"],
            train=True,
            sample_mask=mask,
            method="classify_all",
            mutable=list(collections),
        )
        ces = branch_cross_entropies(
            branch_logits, batch["label"], label_smoothing=self.label_smoothing, mask=mask
        )
        loss = ce = ces.sum()
        metrics: Metrics = {}
        if self.distillation:
            divergence = distillation_loss(branch_logits, teacher=self.teacher, mask=mask).sum()
            loss = ce + self.distillation * divergence
            metrics["distillation"] = divergence
        metrics |= {"loss": loss, "ce": ce, **_branch_accuracies(branch_logits, batch)}
        metrics["accuracy"] = metrics["accuracy_per_resolution"][0]
        return loss, (updated, metrics)


@dataclass(frozen=True)
class JointLoss:
    """Stage 2: L_ce + eta * L_reg (DRNet eq. 8), and in a single stage stage 1's sum with a weight.

    Attributes:
      model: the network with its predictor, or without one at a single resolution.
      costs: what every choice costs, in GMACs or ms.
      target: alpha in the same unit, or None for no regulariser.
      eta: weight of the regulariser.
      tau_fn: temperature as a function of the step.
      label_smoothing: of the cross-entropies.
      gmacs: what every choice costs in GMACs, for the metrics; None: `costs` are that.
      branch_weight: weight of the sum of the cross-entropies at all resolutions; 0: none.
    """

    model: DRNet
    costs: tuple[float, ...]
    target: float | None
    eta: float
    tau_fn: optax.Schedule
    label_smoothing: float = 0.0
    gmacs: tuple[float, ...] | None = None
    branch_weight: float = 0.0

    def __call__(
        self, params: Any, collections: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """See `Loss`; `key` is of the Gumbel noise."""
        mask = batch.get("mask")
        costs = jnp.asarray(self.costs, jnp.float32)
        tau = self.tau_fn(step)
        output, updated = self.model.apply(
            {"params": params, **collections},
            batch["image"],
            tau=tau,
            train=True,
            sample_mask=mask,
            method="sample",
            rngs={"gumbel": key},
            mutable=list(collections),
        )
        ce = cross_entropy(
            output.logits, batch["label"], label_smoothing=self.label_smoothing, mask=mask
        )
        sampled_cost = expected_cost(output.one_hot, costs, mask=mask)
        reg = jnp.zeros((), jnp.float32)
        if self.target is not None:
            reg = resource_regulariser(sampled_cost, costs, self.target)
        loss = ce + self.eta * reg
        extra: Metrics = {}
        gmacs, gmacs_sampled = costs, sampled_cost
        if self.gmacs is not None:
            gmacs = jnp.asarray(self.gmacs, jnp.float32)
            gmacs_sampled = expected_cost(output.one_hot, gmacs, mask=mask)
            extra["ms_sampled"] = sampled_cost
        if self.branch_weight:
            branch_ce = branch_cross_entropies(
                output.branch_logits,
                batch["label"],
                label_smoothing=self.label_smoothing,
                mask=mask,
            ).sum()
            loss = loss + self.branch_weight * branch_ce
            extra["branch_ce"] = branch_ce
        greedy = jax.nn.one_hot(output.scores.argmax(-1), len(self.costs), dtype=jnp.float32)
        metrics = {
            "loss": loss,
            "ce": ce,
            "reg": reg,
            "tau": tau,
            "accuracy": masked_mean(output.logits.argmax(-1) == batch["label"], mask),
            "shares_sampled": jax.vmap(masked_mean, (1, None))(output.one_hot, mask),
            "shares": jax.vmap(masked_mean, (1, None))(greedy, mask),
            "gmacs_sampled": gmacs_sampled,
            "gmacs_argmax": expected_cost(greedy, gmacs, mask=mask),
            **extra,
            **_branch_accuracies(output.branch_logits, batch),
        }
        return loss, (updated, metrics)


def _branch_accuracies(branch_logits: jax.Array, batch: Batch) -> Metrics:
    correct = branch_logits.argmax(-1) == batch["label"][:, None]
    per_resolution = jax.vmap(masked_mean, (1, None))(correct, batch.get("mask"))
    return {"accuracy_per_resolution": per_resolution}


def create_tau_fn(stage: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """tau * tau_decay^epoch, not below tau_min (tau_decay = 1: constant)."""

    def tau(step: Any) -> Any:
        """The temperature after so many steps, float32."""
        epoch = jnp.asarray(step, jnp.float32) / steps_per_epoch
        return jnp.maximum(stage.tau_min, stage.tau * stage.tau_decay**epoch)

    return tau
