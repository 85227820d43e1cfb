"""Pictures and weights of a tiny conversion."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from drnet_jax.data.digits_on_photos import compose
from drnet_jax.models.backbone import Backbone, backbones
from drnet_jax.pretrained.export import export_weights
from tests.small_run import GLANCE, small_config

NETWORK = "stage_sizes=(1, 1), width=4, stem='small'"
CLASSES = ("zero", "one", "two")
FIELDS = {
    "model.args": NETWORK,
    "model.resolutions": (32, 16),
    **GLANCE,
    "predictor.objective": "correctness",
    "joint.alpha_fraction": None,
    "data.name": "folder",
    "data.train_images": 0,
    "data.eval_images": 0,
    "data.test_fraction": 0.3,
    "data.calibration_fraction": 0.3,
    "pretrain.batch_size": 20,
    "pretrain.num_epochs": 2,
    "pretrain.distillation": 1.0,
    "pretrain.teacher": "largest",
    "benchmark.batch_sizes": (2,),
    "benchmark.repeats": 5,
    "benchmark.seconds": 0.1,
}


def write_pictures(folder: Path, per_class: int = 50) -> None:
    """The first three digits, a folder each, in a little more or less red: features tell them."""
    data = compose("test", 20 * per_class)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in (data["label"] == label).nonzero()[0][:per_class]:
            picture = data["image"][index].copy()
            picture[..., 0] = picture[..., 0] * (0.5 + 0.25 * label)
            Image.fromarray(picture).save(folder / name / f"{index}.png")


def network(num_classes: int, stage_sizes: tuple[int, ...] = (1, 1)) -> Backbone:
    return backbones()["resnet"](num_classes, stage_sizes=stage_sizes, width=4, stem="small")


@cache
def random_variables(num_classes: int, **options: Any) -> Any:
    """At 32 px, of a network whose BatchNorms do something."""
    made = network(num_classes, **options)
    init = jax.jit(partial(made.init, resolution=32, train=False))
    variables = init(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(4)

    def changed(leaf: jax.Array) -> jax.Array:
        """Kernels by a factor, vectors by a summand."""
        noise = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return leaf * noise if leaf.ndim > 1 else leaf + noise / 5

    return jax.tree.map(changed, variables)


def write_weights(path: Path, num_classes: int, **options: Any) -> None:
    """As torchvision names them."""
    variables = random_variables(num_classes, **options)
    export_weights(path, network(num_classes, **options), variables, 32)


def conversion(folder: Path, **further: Any) -> ConfigDict:
    """Of the pictures and weights in a folder."""
    places = {
        "data.dir": str(folder / "pictures"),
        "convert.weights": str(folder / "weights.safetensors"),
    }
    return small_config(**FIELDS | places | further)
