"""Stage 2 of an objective that is fitted: no steps, and the classifier stays as it is."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.data.sources import DataError
from drnet_jax.evaluation.inputs import missing
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import record
from drnet_jax.evaluation.outputs import evaluate_logits, make_look_step, name_images
from drnet_jax.models.glance import GlanceHead
from drnet_jax.models.variables import merge_variables
from drnet_jax.runtime.metric_writer import MetricWriter
from drnet_jax.runtime.progress import log
from drnet_jax.training.objectives import correctness, threshold
from drnet_jax.training.objectives.fitting import Fit, HeldOut
from drnet_jax.training.reuse import fit_weights
from drnet_jax.training.stage import Run, Stage
from drnet_jax.training.validation import Validator

FITS: Mapping[str, Fit] = {
    "correctness": correctness.fit,
    "spend": correctness.spend,
    "threshold": threshold.fit,
}


def fit_stage(stage: Stage, variables: Any) -> None:
    """Fits the choice to held-out images, and saves it with the classifier as step 1.

    Args:
      stage: `'joint'`, of one step.
      variables: of the end of stage 1.

    Raises:
      DataError: too many images cannot be read.
      NotFiniteError: outputs are not finite.
      BudgetError: no choice is within the target.
    """
    run = stage.run
    fitted = fit_head(run, variables)
    validation = Validator(stage)(fitted)
    if validation.left_out:
        log(f"calibration leaves out {validation.left_out}")
    if validation.excess:
        raise DataError(validation.excess)
    log(f"{stage.name}, fitted: {validation.text}")
    writer = MetricWriter(
        run.workdir,
        tuple(run.config.stages),
        stage.name,
        0,
        tensorboard=run.config.log.tensorboard,
    )
    writer.write(stage.name, 1, validation.figures)
    writer.close()
    collections = {name: tree for name, tree in fitted.items() if name != "params"}
    state: dict[str, Any] = {"params": fitted["params"], "collections": collections}
    if stage.section.ema_decay:
        # Where they are looked for in a run that has moving averages.
        state["ema"] = dict(state)
    stage.checkpoints.save(1, state, objective=validation.objective)


def fit_head(run: Run, variables: Any) -> Any:
    """The variables with the head's, and its weights of the first look, fitted.

    Raises:
      DataError, NotFiniteError, BudgetError: see `fit_stage`.
    """
    objective = run.config.predictor.objective
    outputs = held_out_outputs(run, variables)
    weight = _weight(run, outputs)
    # In parts, without a second copy of all logits.
    records = record(outputs.logits, outputs.scores, weight, outputs.label, outputs.index)
    costs = np.array(run.cost.choice_costs)
    held_out = HeldOut(outputs.scores, records.answer_top1, costs, run.target)
    try:
        found = FITS[objective](held_out)
    except BudgetError as error:
        raise BudgetError(
            f"joint.alpha or joint.alpha_fraction is a target of {run.target:.4g} {run.cost.unit}, "
            f"which no choice on these images keeps ({error}): raise it"
        ) from error
    return _with_values(
        variables,
        {
            "params": {"fc": {"kernel": found.kernel, "bias": found.bias}},
            "fitted": {"offset": found.offset, "weight": weight},
        },
    )


def fit_reuse(run: Run, variables: Any) -> Any:
    """The variables with the weights of the first look fitted, for what is trained after that.

    Raises:
      DataError, NotFiniteError: see `fit_stage`.
    """
    weight = _weight(run, held_out_outputs(run, variables))
    return _with_values(variables, {"fitted": {"weight": weight}})


def _weight(run: Run, outputs: Logits) -> np.ndarray:
    """`[m]`, of the first look in every answer; zero without reuse."""
    if not run.model.reuses:
        return np.zeros(len(run.model.resolutions), np.float32)
    weight = fit_weights(outputs.logits, outputs.label)
    log(f"weights of the first look's logits: {'/'.join(f'{w:.2f}' for w in weight[:-1])}")
    return weight


def _with_values(variables: Any, values: Mapping[str, Any]) -> Any:
    """The variables with values of the head in the place of its own, if it has them.

    Args:
      variables: of the model.
      values: by collection; of several processes the first one's, as others may have fitted them
        otherwise in the last bit.
    """
    values = multihost_utils.broadcast_one_to_all(values)

    def replaced(path: Any, old: jax.Array) -> jax.Array:
        """A leaf of the head, with dtype and placement of the old one."""
        value: Any = values
        for entry in path:
            value = value.get(entry.key) if isinstance(value, Mapping) else None
        return old if value is None else jax.device_put(np.asarray(value, old.dtype), old.sharding)

    old = {name: tree["predictor"] for name, tree in variables.items() if "predictor" in tree}
    new = jax.tree_util.tree_map_with_path(replaced, old)
    return merge_variables(variables, {name: {"predictor": tree} for name, tree in new.items()})


def held_out_outputs(run: Run, variables: Any) -> Logits:
    """Outputs for the images of `joint.fit_split`; `scores` `[n, f]` are what the head reads.

    Raises:
      DataError: more than `data.max_corrupt` of them cannot be read.
      NotFiniteError: outputs are not finite.
    """
    config, data, head = run.config, run.config.data, run.model.predictor
    assert isinstance(head, GlanceHead)
    split = config.joint.fit_split
    source = run.calibration if split == "calibration" else run.train
    log(f"outputs for the {len(source)} images of the {split} split ...")
    outputs = evaluate_logits(
        make_look_step(
            run.model, tuple(data.mean), tuple(data.std), lambda looks: head.features(looks[-1])
        ),
        variables,
        source,
        batch_size=config.eval.batch_size,
        mesh=run.mesh,
        checkpoint=None,
    )
    corrupt = missing(outputs, source)
    if len(corrupt):
        words = f"{len(corrupt)} images cannot be read ({name_images(source, corrupt)})"
        if len(corrupt) > data.max_corrupt:
            raise DataError(
                f"{words}, more than data.max_corrupt={data.max_corrupt}: repair them or raise it"
            )
        log(f"{words}: fitted without them")
    return outputs
