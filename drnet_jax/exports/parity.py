"""Whether exported files say what JAX says, on real images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from scipy.special import log_softmax

from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.networks import LOGITS, SCORES, ExportedNetwork
from drnet_jax.exports.onnx_model import IMAGES
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.decision import choose
from drnet_jax.models.glance import mixed

# Of logits and scores; float32 has seven digits, so that of the largest values it is the second.
_TOLERANCE, _RELATIVE = 1e-4, 1e-5
# Values of two resolutions that are nearer than this may be chosen either way.
TIE = 1e-5
# Of a file: inputs by their names, to outputs by theirs.
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
# Images that are run at once, over and over: any number of them has to work.
_BATCHES = (1, 2, 5, 16)


@dataclass(frozen=True)
class Agreement:
    """How far the exported networks are from JAX's.

    Attributes:
      num_images: that were compared.
      differences: by output, `'classifier_224 logits'`: the largest absolute difference.
      tolerances: by output, of that.
      num_lambdas: at which choices were compared.
      num_choices: that were compared.
      num_ties: choices that differ, of resolutions whose values do not.
      problems: what does not agree, in words.
    """

    num_images: int
    differences: Mapping[str, float]
    tolerances: Mapping[str, float]
    num_lambdas: int
    num_choices: int
    num_ties: int
    problems: Sequence[str] = field(default_factory=list)

    def with_problems_of(self, others: Mapping[str, "Agreement"]) -> "Agreement":
        """With the problems of other files, by their names."""
        found = [f"{name}: {problem}" for name, each in others.items() for problem in each.problems]
        return replace(self, problems=[*self.problems, *found])

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "tie": TIE}


@dataclass(frozen=True)
class Outputs:
    """What all networks say of n images, m resolutions and k classes.

    Attributes:
      scores: `[n, m]`; None: there is one resolution.
      logits: `[n, m, k]`, each resolution's by itself.
    """

    scores: np.ndarray | None
    logits: np.ndarray


def run_files(
    folder: Path,
    networks: Sequence[ExportedNetwork],
    images: np.ndarray,
    ending: str = ".onnx",
    load: Callable[[Path], Run] | None = None,
) -> Outputs:
    """Runs exported files on the CPU, in batches of several sizes.

    Args:
      folder: of the files.
      networks: what they are of, as `exported_networks` gives them.
      images: `[n, h, w, 3]` uint8.
      ending: of the files' names.
      load: a file; default: by `onnx_runtime`.

    Raises:
      ExportError: ONNX Runtime cannot run one; it is named.
    """
    scores = None
    first: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    for network in networks:
        found = _in_parts((load or onnx_runtime)(folder / f"{network.name}{ending}"), images)
        scores = found.get(SCORES, scores)
        if LOGITS in found:
            (first if network.role == "first_look" else logits).append(found[LOGITS])
    return Outputs(scores, np.stack([*logits, *first], axis=1))


def _in_parts(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    parts = [run({IMAGES: part}) for part in _parts(images)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def onnx_runtime(path: Path) -> Run:
    """An exported file by ONNX Runtime on the CPU: inputs by their names to outputs by theirs.

    Raises:
      ExportError: ONNX Runtime cannot load it; so does what is given if it cannot run it.
    """

    def failure(error: Exception) -> ExportError:
        """In words. Its own kinds have no common base but `Exception`."""
        return ExportError(f"ONNX Runtime cannot run {path.name}: {error}")

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise failure(error) from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One batch."""
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise failure(error) from error

    return run


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    start = number = 0
    while start < len(images):
        size = _BATCHES[min(number, len(_BATCHES) - 1)]
        yield images[start : start + size]
        start, number = start + size, number + 1


def enough(images: np.ndarray) -> np.ndarray:
    """Images over and over, where they are too few for a batch of every size."""
    return images[np.arange(max(len(images), sum(_BATCHES))) % len(images)]


def compare(
    engine: ArrayClassifier,
    outputs: Outputs,
    images: np.ndarray,
    *,
    num_images: int,
    lambdas: Sequence[float],
    weight: np.ndarray | None,
) -> Agreement:
    """Compares outputs with those of JAX, network by network and answer by answer.

    Args:
      engine: the model in JAX, compiled for these images.
      outputs: of the exported files for the same images.
      images: `[n, h, w, 3]` uint8, as `enough` gives them.
      num_images: of them that are not the same.
      lambdas: at which choices are compared; answers at the first and at the middle one.
      weight: `[m]` of a first look's logits in the answers; None: answers are of one look.
    """
    scores, logits = engine.classify_everywhere(images)
    costs = np.array(engine.cost.choice_costs)
    pairs = {
        f"logits at {size} px": (outputs.logits[:, j], logits[:, j])
        for j, size in enumerate(engine.resolutions)
    }
    problems: list[str] = []
    num_ties = num_choices = 0
    if scores is not None and outputs.scores is not None:
        pairs["scores"] = (outputs.scores, scores)
        for lam in lambdas:
            ties, wrong = _differing_choices(outputs.scores, scores, costs, lam)
            num_ties, num_choices = num_ties + ties, num_choices + len(images)
            if wrong:
                problems.append(f"at lambda {lam:.6g} {wrong} of {len(images)} choices differ")
    for lam in dict.fromkeys([lambdas[0], lambdas[len(lambdas) // 2]]):
        found, expected = _answers(engine, outputs, images, lam, weight)
        pairs[f"answers at lambda {lam:.4g}"] = (found, expected)
    differences, tolerances, further = compare_values(pairs)
    problems += further
    return Agreement(
        num_images, differences, tolerances, len(lambdas), num_choices, num_ties, problems
    )


def compare_values(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """How far values are from what is expected.

    Args:
      pairs: by name, what was found and what is expected, of one shape.

    Returns:
      Differences and tolerances, as `Agreement` has them, and what is above them, in words.
    """
    differences, tolerances, problems = {}, {}, []
    for name, (found, expected) in pairs.items():
        tolerances[name] = max(_TOLERANCE, _RELATIVE * float(abs(expected).max(initial=0)))
        # Of what is not a number, too.
        distances = np.nan_to_num(abs(found - expected), nan=np.inf)
        differences[name] = float(distances.max(initial=0))
        if differences[name] > tolerances[name]:
            problems.append(
                f"{name} differ by {differences[name]:.3g}, more than {tolerances[name]:.3g}"
            )
    return differences, tolerances, problems


def _differing_choices(
    found: np.ndarray, expected: np.ndarray, costs: np.ndarray, lam: float
) -> tuple[int, int]:
    """How many choices differ because of a tie, and how many for no such reason."""
    if not np.isfinite(found).all():
        return 0, len(found)
    choices, wanted = choose(found, costs, lam), choose(expected, costs, lam)
    values = log_softmax(expected.astype(np.float64), axis=1) - lam * costs
    rows = np.flatnonzero(choices != wanted)
    tied = values[rows, wanted[rows]] - values[rows, choices[rows]] < TIE
    return int(tied.sum()), int((~tied).sum())


def _answers(
    engine: ArrayClassifier,
    outputs: Outputs,
    images: np.ndarray,
    lam: float,
    weight: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[n, k]` of exported files and of JAX's dispatch, where both chose the same."""
    expected = engine.classify(images, lam=lam)
    choices = np.zeros(len(images), int)
    if outputs.scores is not None and np.isfinite(outputs.scores).all():
        choices = choose(outputs.scores, np.array(engine.cost.choice_costs), lam)
    logits = outputs.logits if weight is None else mixed(outputs.logits, weight)
    same = choices == expected.choices
    return logits[same, choices[same]], expected.logits[same]
