"""The calibration split at the end of every epoch: what the best checkpoint is chosen by."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from drnet_jax.evaluation.metrics import objective, summarise
from drnet_jax.evaluation.outputs import evaluate, make_eval_step, name_images
from drnet_jax.models.variables import merge_variables
from drnet_jax.training.stage import Stage


@dataclass(frozen=True)
class Validation:
    """What the calibration split says of a state.

    Attributes:
      objective: what the stage minimises, without noise and without what only helps the training
        (distillation, `joint.branch_weight`); of imported weights the shares of wrong answers,
        summed; the lower the better.
      figures: for the log, the objective among them.
      text: the accuracies, for the terminal.
      left_out: which images are corrupt, in words; empty: none.
      excess: why to stop, if they are too many; the objective is then not to be compared.
    """

    objective: float
    figures: dict[str, Any]
    text: str
    left_out: str
    excess: str = ""


class Validator:
    """Evaluates states of a stage on the calibration split.

    Args:
      stage: which.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        data = stage.run.config.data
        self._eval_step = make_eval_step(stage.run.model, tuple(data.mean), tuple(data.std))

    def __call__(self, variables: Any) -> Validation:
        """Figures of the variables that the stage trains.

        Raises:
          NotFiniteError: outputs are not finite.
          DataError: no image can be read.
        """
        stage, run = self._stage, self._stage.run
        records = evaluate(
            self._eval_step,
            merge_variables(stage.untrained, variables),
            run.calibration,
            batch_size=run.config.eval.batch_size,
            mesh=run.mesh,
            # As in training they are left out and named; the evaluation proper is stricter.
            skip_corrupt=True,
        )
        left_out = np.setdiff1d(np.arange(len(run.calibration)), records.index)
        named = name_images(run.calibration, left_out) if len(left_out) else ""
        summary = summarise(records, run.model.resolutions, run.cost)
        fixed = [entry["top1"] for entry in summary["fixed"]]
        text = "calibration top-1 " + "/".join(f"{top1:.3f}" for top1 in fixed)
        figures: dict[str, Any] = {"calibration_fixed_top1": fixed}
        if stage.name == "pretrain" and run.config.convert.weights:
            # Label smoothing flattens what is trained: its cross-entropy and that of the start do
            # not compare.
            score = len(fixed) - sum(fixed)
        elif stage.name == "pretrain":
            score = float(records.ce.mean(axis=0).sum())
        else:
            score = objective(records, run.cost, target=run.target, eta=stage.section.eta)
            figures["calibration_top1"] = summary["top1"]
            figures["calibration_gmacs"] = summary["gmacs"]
            if run.cost.measured is not None:
                figures["calibration_ms"] = float(np.dot(summary["shares"], run.cost.choice_costs))
            text += f", DRNet {summary['top1']:.3f} at {summary['gmacs']:.4g} GMACs"
        limit = run.config.data.max_corrupt
        excess = (
            f"{len(left_out)} calibration images cannot be read ({named}), more than "
            f"data.max_corrupt={limit}: repair them or raise it"
        )
        return Validation(
            score,
            {"calibration_objective": score, **figures},
            text,
            f"{len(left_out)} corrupt images: {named}" if named else "",
            excess if len(left_out) > limit else "",
        )
