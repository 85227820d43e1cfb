"""`--mode=benchmark`: the latency of every method on this device, by batch size."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.budgets.calibration import calibrate
from drnet_jax.checkpoints.answers import agreement
from drnet_jax.checkpoints.restore import RestoredModel, check_predictor
from drnet_jax.config import network_in_words
from drnet_jax.data.decode import CorruptImageError
from drnet_jax.data.encode import encode
from drnet_jax.data.eval_view import view_of
from drnet_jax.data.sources import DataError, EncodedSource, Source
from drnet_jax.evaluation.inputs import (
    ModelOutputs,
    evaluation_fields,
    restore_and_load,
    with_origin,
)
from drnet_jax.evaluation.latency import time_in_turns
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.batches import buckets_in_words, check_batches
from drnet_jax.inference.create import array_classifier, measured
from drnet_jax.inference.decision import choose
from drnet_jax.inference.programs import CostTable
from drnet_jax.models.macs import ModelCost
from drnet_jax.reports.latency_report import LeftOut, Row, markdown, plot, verdicts
from drnet_jax.runtime.files import check_writable, write_json, write_text
from drnet_jax.runtime.progress import log

# Pictures that batches are drawn from.
_POOL = 512


@dataclass(frozen=True)
class Method:
    """A method of classifying images `[n, h, w, 3]`.

    Attributes:
      name: what to call it.
      kind: `'fixed'`, `'adaptive'` or `'dense'`.
      correct: `[n]` bool, what it gets right of the calibration split.
      origin: `[n]` of these images, see `EvalRecords`.
      gmacs: mean cost per image.
      run: classifies and waits.
    """

    name: str
    kind: str
    correct: np.ndarray
    origin: np.ndarray | None
    gmacs: float
    run: Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Pool:
    """Pictures to draw batches from.

    Attributes:
      pixels: `[n, h, w, 3]` uint8.
      encoded: the same ones as JPEGs (or whatever the data set has).
      decode: from one of these to `[h, w, 3]`.
    """

    pixels: np.ndarray
    encoded: list[bytes]
    decode: Callable[[bytes], np.ndarray]


def restore_and_benchmark(
    config: ConfigDict, workdir: Path, *, lambdas: Mapping[str, float] | None = None
) -> list[Row]:
    """Times fixed resolutions, adaptive inference and the dense model; writes `benchmark/<time>/`.

    Accuracies are those of the calibration split, on which lambda is solved for
    `benchmark.gmacs`; batches are random images of it. What `benchmark.max_seconds` leaves no time
    for is named in the table.

    Args:
      config: with the model the checkpoint was trained with.
      workdir: of the run, unless `restore_from` names another.
      lambdas: of the adaptive methods, by what to call them; default: 0, and those solved.

    Raises:
      CheckpointError: no checkpoint, one of another model, or no trained predictor.
      DataError: the data cannot be read, or is other data.
      BudgetError: a budget cannot be kept.
      ConfigError: batches that do not fit into the memory.
      OSError: `workdir` cannot be written to.
    """
    check_writable(workdir / "benchmark")
    restored, source = restore_and_load(config, workdir, "calibration")
    check_predictor(restored)
    check_batches(config, "benchmark.batch_sizes", source.image_size)
    outputs = ModelOutputs(config, workdir, restored).of("calibration", source)
    records = with_origin(outputs.records(), source)
    if lambdas is None:
        lambdas = _lambdas(records, restored.cost, tuple(config.benchmark.gmacs))
    rows, times, left_out = _time_all(config, restored, source, records, lambdas)
    rows.sort(key=lambda row: row.input, reverse=True)
    setting = timing_setting(config)
    folder = _new_folder(workdir / "benchmark")
    content = {
        "setting": setting,
        "rows": [row.figures() for row in rows],
        "verdicts": verdicts(rows),
        "bucket_seconds": None if times is None else asdict(times),
        "left_out": left_out.figures(),
        "checkpoint_step": restored.step,
        "config": restored.config | evaluation_fields(config),
    }
    write_json(folder / "table.json", content)
    said = (setting, agreement(restored.config), left_out.words())
    text = markdown(rows, "; ".join(filter(None, said)))
    write_text(folder / "table.md", text)
    plot(rows, setting, folder / "throughput.png")
    log(f"\n{text}\nwrote table.json, table.md and throughput.png in {folder}")
    return rows


def _time_all(
    config: ConfigDict,
    restored: RestoredModel,
    source: Source,
    records: EvalRecords,
    lambdas: Mapping[str, float],
) -> tuple[list[Row], CostTable | None, LeftOut]:
    """Compiles for one batch size after another, the smallest first, and times it before the next.

    Nothing is compiled while something is timed. Compiling ends so early that the timing of a batch
    size is likely to fit into `benchmark.max_seconds`: as long before as the one before it took,
    twice, or as it may take. Once they are over no further batch size begins. The smallest is timed
    whatever the time, with one bucket at least.

    Returns:
      The rows, the seconds of the buckets that were compiled last, and what was left out.
    """
    benchmark = config.benchmark
    until = time.monotonic() + benchmark.max_seconds
    # Images in memory, then JPEGs.
    timing = 2 * benchmark.seconds
    sizes = sorted(set(benchmark.batch_sizes))
    engine = array_classifier(
        config, restored, source.image_size, up_to=sizes[0], until=until - timing
    )
    pool = picture_pool(source)
    rows: list[Row] = []
    without: dict[int, list[int]] = {}
    for size in sizes:
        if size > sizes[0]:
            log(f"compiling every resolution for batch {size} ...")
            larger = engine.extended(size, until - timing)
            if not larger.is_ready(size):
                break
            engine = larger if larger is engine else measured(config, larger)
            if time.monotonic() > until:
                break
        without[size] = engine.lacking(size)
        begin = time.monotonic()
        rows += _measure(_methods(engine, records, lambdas), pool, size, config)
        # A larger batch takes longer, and five turns it gets.
        timing = max(timing, 2 * (time.monotonic() - begin))
    not_timed = [size for size in sizes if size not in without]
    return rows, engine.times, LeftOut(benchmark.max_seconds, not_timed, without)


def _new_folder(parent: Path) -> Path:
    """A folder called by the time, with a number if another benchmark took that."""
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    folder, numbers = parent / name, count(2)
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder = parent / f"{name}-{next(numbers)}"


def _lambdas(records: EvalRecords, cost: ModelCost, budgets: Sequence[float]) -> dict[str, float]:
    """Lambda of every adaptive method, by its name."""
    costs, spent = np.array(cost.choice_costs), np.array(cost.choice_gmacs)
    if len(costs) == 1:
        return {}
    answers, largest = records.answer_top1, records.top1[:, 0]
    scores, predictor = records.scores, cost.predictor_gmacs
    found = calibrate(scores, answers, largest, spent, predictor, "", costs=costs)
    solved = {f"adaptive {gmacs:g} GMACs": found.for_gmacs(gmacs).lam for gmacs in budgets}
    return {"adaptive": 0.0, **solved}


def _methods(
    engine: ArrayClassifier, records: EvalRecords, lambdas: Mapping[str, float]
) -> list[Method]:
    costs = np.array(engine.cost.classifier_gmacs)
    predictor = engine.cost.predictor_gmacs

    def method(
        name: str, kind: str, correct: np.ndarray, gmacs: float, run: Callable[[np.ndarray], object]
    ) -> Method:
        """Of the images of the records."""
        return Method(name, kind, correct, records.origin, gmacs, run)

    methods = [
        method(f"fixed {resolution}", "fixed", correct, float(cost), engine.fixed(choice).classify)
        for choice, (resolution, correct, cost) in enumerate(
            zip(engine.resolutions, records.top1.T, costs, strict=True)
        )
    ]
    for name, lam in lambdas.items():
        spent = np.array(engine.cost.choice_gmacs)
        choice = choose(records.scores, np.array(engine.cost.choice_costs), lam)
        correct = np.take_along_axis(records.answer_top1, choice[:, None], 1)[:, 0]
        cost = float(spent[choice].mean()) + predictor
        methods.append(method(name, "adaptive", correct, cost, partial(engine.classify, lam=lam)))
    if not lambdas:
        return methods
    # It computes everything and answers as the first adaptive method does.
    correct, cost = methods[len(costs)].correct, float(costs.sum()) + predictor
    return [*methods, method("dense", "dense", correct, cost, engine.classify_everywhere)]


def picture_pool(source: Source) -> Pool:
    """Random pictures of a split that can be decoded.

    Raises:
      DataError: none can.
    """
    rows = np.random.default_rng(0).permutation(len(source))[:_POOL]
    if isinstance(source, EncodedSource):
        encoded = [source[int(row)]["encoded"] for row in rows]
    else:
        encoded = [encode(source[int(row)]["image"], "JPEG") for row in rows]
    decode = view_of(source).decode
    decoded = [(picture, _decoded(decode, picture)) for picture in encoded]
    good = [(picture, pixels) for picture, pixels in decoded if pixels is not None]
    if not good:
        raise DataError("no picture of the calibration split can be decoded")
    return Pool(np.stack([p for _, p in good]), [picture for picture, _ in good], decode)


def _decoded(decode: Callable[[bytes], np.ndarray], picture: bytes) -> np.ndarray | None:
    try:
        return decode(picture)
    except CorruptImageError:
        return None


def _measure(methods: list[Method], pool: Pool, batch_size: int, config: ConfigDict) -> list[Row]:
    """All methods at one batch size, from pixels and from JPEGs."""
    rng = np.random.default_rng(batch_size)
    settings = {
        "batch_size": batch_size,
        "repeats": config.benchmark.repeats,
        "seconds": config.benchmark.seconds,
    }

    def draw() -> np.ndarray:
        """Random rows of the pool."""
        return rng.choice(len(pool.encoded), batch_size, replace=batch_size > len(pool.encoded))

    rows = []
    with ThreadPoolExecutor(_threads()) as threads:

        def from_pixels(method: Method, batch: np.ndarray) -> object:
            """Classifies images in memory."""
            return method.run(batch)

        def from_encoded(method: Method, batch: list[bytes]) -> object:
            """Decodes and classifies."""
            return method.run(np.stack(list(threads.map(pool.decode, batch))))

        for kind, run, next_batch in (
            ("pixels", from_pixels, lambda: pool.pixels[draw()]),
            ("jpeg", from_encoded, lambda: [pool.encoded[row] for row in draw()]),
        ):
            log(f"timing batch {batch_size}, {kind} ...")
            calls: list[Any] = [partial(run, method) for method in methods]
            found = time_in_turns(calls, next_batch, **settings)
            rows += [
                Row(kind, m.name, m.kind, m.correct, m.origin, m.gmacs, latency)
                for m, latency in zip(methods, found, strict=True)
            ]
    return rows


def _threads() -> int:
    """That decode."""
    return os.cpu_count() or 1


def timing_setting(config: ConfigDict) -> str:
    """Device and what was measured on it, in words."""
    glances = config.predictor.kind == "glance" and len(config.model.resolutions) > 1
    first = f", first look at {min(config.model.resolutions)} px" if glances else ""
    network = network_in_words(config.model.name, config.model.pruning_rates)
    return (
        f"{jax.devices()[0].device_kind} ({platform.machine()}), {_threads()} threads, jax "
        f"{jax.__version__}, {network}, {config.model.dtype}, resolutions "
        f"{'/'.join(map(str, config.model.resolutions))}{first}, buckets "
        f"{buckets_in_words(config)}"
    )
