"""What `huggingface_hub` gives a class, where it is installed; folders need nothing of it."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drnet_jax.checkpoints.checkpoint import CheckpointError

# Before, `ModelHubMixin` cannot be imported where safetensors is installed and PyTorch is not.
_LEAST_MAJOR = 2
_INSTALL = f"pip install 'huggingface_hub>={_LEAST_MAJOR}'"
# Of a model there: its owner and its name.
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def _is_installed() -> bool:
    """Whether `huggingface_hub` is there, in a version that can be used."""
    if find_spec("huggingface_hub") is None:
        return False
    return int(version("huggingface_hub").split(".")[0]) >= _LEAST_MAJOR


INSTALLED = _is_installed()


class LocalMixin:
    """In the place of `ModelHubMixin` where `huggingface_hub` is not installed."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes a folder by `_save_pretrained`; None: it is nowhere else.

        Raises:
          ModuleNotFoundError: options, which are all of uploading.
        """
        if options:
            raise ModuleNotFoundError(f"{', '.join(options)} needs it: {_INSTALL}")
        self._save_pretrained(Path(save_directory))
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        """For the class that this is mixed into to write the folder, as with `ModelHubMixin`."""
        raise NotImplementedError

    def push_to_hub(self, *_: Any, **options: Any) -> str:
        """Uploads nothing.

        Raises:
          ModuleNotFoundError: always.
        """
        raise ModuleNotFoundError(f"push_to_hub needs it: {_INSTALL}")


if TYPE_CHECKING or not INSTALLED:
    HubMixin = LocalMixin
else:
    import huggingface_hub

    HubMixin = huggingface_hub.ModelHubMixin


def downloaded(name: str, files: Sequence[str], **options: Any) -> Path:
    """The folder of a model of the hub, with these of its files.

    Args:
      name: `owner/name`.
      files: their names; there may be fewer.
      **options: of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir` and more.

    Raises:
      CheckpointError: `name` is no such name, `huggingface_hub` is not installed, or there is no
        such model, or no way to it.
    """
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name} is no folder: name one that save_pretrained wrote")
    if not INSTALLED:
        raise CheckpointError(
            f"{name} is no folder: name one that save_pretrained wrote; for a model of that name "
            f"on a hub, {_INSTALL}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **options))
    except (OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{name} is no folder, and cannot be had as a model of the hub: {why}"
        ) from error
