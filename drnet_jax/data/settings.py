"""What the data wing takes from a configuration."""

from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from drnet_jax.config import ConfigError


@dataclass(frozen=True)
class DataSettings:
    """What a data set is read with; `drnet_jax/config_defaults.py` describes the fields.

    Attributes:
      name: `'digits_on_photos'`, `'folder'`, `'imagenet100'`, or a TFDS data set.
      dir: where it is; the embedded data needs none.
      cache_dir: where an index may be kept if `dir` is read-only.
      size: side in pixels that encoded images are cropped and resized to.
      train_images: of the training split; 0: all.
      eval_images: of each other split; 0: all.
      images_per_class: of the training split before `train_images`; 0: all.
      calibration_fraction: of every class of the training images, if there is no such split.
      test_fraction: of every class, if there is no such split.
      split_seed: which images go where.
      crop_scale: see `EncodedSource`.
      eval_crop: see `EncodedSource`.
      labelled: pictures lie in folders of their classes; False: anywhere in `dir`, without labels.
    """

    name: str
    dir: str = ""
    cache_dir: Path = Path("cache")
    size: int = 224
    train_images: int = 0
    eval_images: int = 0
    images_per_class: int = 0
    calibration_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    eval_crop: float = 0.875
    labelled: bool = True


def check_places(config: ConfigDict, workdir: Path) -> None:
    """Stops where a run would write into its own folder of pictures, and find a class there.

    Raises:
      ConfigError: the workdir is in `data.dir`.
    """
    if config.data.name == "folder" and config.data.dir:
        check_outside("data.dir", Path(config.data.dir), "--workdir", workdir)


def check_outside(read_field: str, read: Path, written_field: str, written: Path) -> None:
    """Stops if results would be written into a folder that is read, whatever links lead there.

    Raises:
      ConfigError: naming both, by their fields.
    """
    if written.resolve().is_relative_to(read.resolve()):
        raise ConfigError(
            f"{written} is in the folder of pictures {read_field}={str(read)!r}, where results "
            f"would be taken for pictures and classes: give {written_field} a folder outside"
        )


def data_settings(
    config: ConfigDict, workdir: Path, *, labelled: bool | None = None
) -> DataSettings:
    """How to read the configured data set; images get the largest resolution's size.

    Args:
      config: the whole configuration.
      workdir: of the run.
      labelled: whether the data have labels; default: `convert.labels`.
    """
    data = config.data
    return DataSettings(
        name=data.name,
        dir=data.dir,
        cache_dir=workdir / "cache",
        size=max(config.model.resolutions),
        train_images=data.train_images,
        eval_images=data.eval_images,
        images_per_class=data.images_per_class,
        calibration_fraction=data.calibration_fraction,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
        crop_scale=tuple(data.crop_scale),
        eval_crop=data.eval_crop,
        labelled=config.convert.labels if labelled is None else labelled,
    )
