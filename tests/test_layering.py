"""Dependencies point one way: main -> train, evaluate -> steps, data, checkpoint -> models."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the bottom up; a file imports only from files before its own layer, or from its own layer's
# earlier entries.
ORDER = [
    "allocator",
    "gumbel",
    "models.convolution",
    "models.layers",
    "models.backbone",
    "models.resnet",
    "models.mobilenet",
    "models.predictor",
    "models.drnet",
    "losses",
    "macs",
    "intervals",
    "ranking",
    "metrics",
    "logits",
    "controls",
    "data.digits_on_photos",
    "data.index_cache",
    "data.sources",
    "data.splits",
    "data.decode",
    "data.crops",
    "data.folder",
    "data.imagenet100",
    "data.imagenet_tars",
    "data.tfds_source",
    "data.datasets",
    "data.prepare",
    "data.preprocess",
    "data.pipeline",
    "inference.buckets",
    "inference.programs",
    "inference.decision",
    "inference.folding",
    "inference.networks",
    "inference.images",
    "inference.encoded",
    "inference.dispatch",
    "inference.adaptive",
    "config",
    "config_checks",
    "build",
    "optim",
    "train_state",
    "train_step",
    "checkpoint",
    "writers",
    "outputs",
    "inference.calibration",
    "restore",
    "inference.load",
    "control_figures",
    "eval_inputs",
    "eval_tables",
    "environment",
    "pages",
    "svg",
    "report_cards",
    "report_plots",
    "report",
    "evaluate",
    "evaluate_bucketed",
    "calibrate",
    "latency",
    "latency_report",
    "benchmark",
    "predictions",
    "gallery",
    "predict",
    "stage_loop",
    "train",
    "torch_file",
    "torch_weights",
    "reestimate",
    "comparison",
    "comparison_plot",
    "compare",
    "sweep_plan",
    "sweep_jobs",
    "sweep",
]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_order() -> None:
    files = {
        ".".join(path.relative_to(ROOT / "drnet_jax").with_suffix("").parts): path
        for path in (ROOT / "drnet_jax").rglob("*.py")
        if path.stem != "__init__"
    }
    assert set(files) == set(ORDER)
    for position, name in enumerate(ORDER):
        above = {f"drnet_jax.{later}" for later in ORDER[position:]}
        assert not imports(files[name]) & above, name


def test_models_are_pure() -> None:
    for path in (ROOT / "drnet_jax" / "models").glob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"ml_collections", "grain", "orbax", "tensorflow_datasets", "absl"}
