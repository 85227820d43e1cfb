"""What a predictor before the first look could still save: images that go straight to a second.

The first look of an image that takes a second one anyway is saved, if that is known beforehand; its
logits are then not there to be reused, and the predictor sees every image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import softmax

from drnet_jax.evaluation.controls import by_choice
from drnet_jax.evaluation.intervals import auroc
from drnet_jax.inference.decision import choose
from experiments.first_look_runs import Run

_SKIPPED = np.linspace(0, 0.5, 26)


def both(run: Run, paper: Run, lam: float) -> Mapping[str, float]:
    """A first look with the paper's predictor before it, beside the first look alone.

    Args:
      run: with a first look.
      paper: the same seed with the paper's predictor.
      lam: lambda of the first look's choice.

    Returns:
      Costs over the largest fixed size's, and accuracies in %: of the first look alone; of the best
      share of images that the predictor sends on, by the calibration split; and what a predictor
      without cost and without mistakes would save.
    """
    costs = np.array(run.cost.choice_gmacs)
    largest = run.cost.classifier_gmacs[0]
    first = run.cost.classifier_gmacs[-1]
    chosen = {
        name: choose(getattr(run, name).scores, costs, lam) for name in ("calibration", "test")
    }
    second = chosen["test"] < len(costs) - 1
    alone = by_choice(run.test.answer_top1, chosen["test"], costs, run.cost.predictor_gmacs)
    surest = {name: _sureness(getattr(paper, name).scores) for name in chosen}
    found = {
        "alone cost": alone.gmacs / largest,
        "alone top1": 100 * alone.top1,
        "perfect saves": float(second.mean()) * first / largest,
        "predictor costs": paper.cost.predictor_gmacs / largest,
        "auroc of a second look": auroc(second, surest["test"]),
    }
    best = max(_SKIPPED, key=lambda share: _value(run, paper, surest, chosen, share, "calibration"))
    top1, cost = _outcome(run, paper, surest, chosen, best, "test")
    return found | {"share": float(best), "cost": cost, "top1": top1}


def _sureness(scores: np.ndarray) -> np.ndarray:
    """`[n]`: the predictor's probability of the largest size."""
    return softmax(scores.astype(float), axis=1)[:, 0]


def _outcome(
    run: Run,
    paper: Run,
    surest: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    share: float,
    split: str,
) -> tuple[float, float]:
    """Top-1 in % and cost over the largest size, where a share goes past the first look."""
    records, costs = getattr(run, split), np.array(run.cost.choice_gmacs)
    threshold = np.quantile(surest["calibration"], 1 - share)
    past = surest[split] > threshold if share else np.zeros(len(records.label), bool)
    looked = by_choice(records.answer_top1, chosen[split], costs, run.cost.predictor_gmacs)
    correct = np.where(past, records.top1[:, 0], looked.correct)
    cost = np.where(past, run.cost.classifier_gmacs[0], looked.cost)
    cost = cost.mean() + paper.cost.predictor_gmacs
    return 100 * float(correct.mean()), float(cost) / run.cost.classifier_gmacs[0]


def _value(
    run: Run,
    paper: Run,
    surest: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    share: float,
    split: str,
) -> float:
    """Accuracy minus the cost at the price that the fixed sizes pay on the way up."""
    top1, cost = _outcome(run, paper, surest, chosen, share, split)
    fixed = 100 * getattr(run, split).top1.mean(axis=0)
    spread = 1 - run.cost.classifier_gmacs[-1] / run.cost.classifier_gmacs[0]
    return top1 - cost * (fixed[0] - fixed[-1]) / spread


def mean_of(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the seeds."""
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}
