"""A server of its own process, and an export made by hand, whose answers NumPy can tell.

The export looks at the mean colour of a picture: red, green and blue are its classes.
"""

import hashlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).parents[1]
SIDE, SMALL = 16, 8
CLASSES = ("red", "green", "blue")
# Logits of a mean colour in [0, 1], at the first look and at the second.
FIRST = np.float32(4 * np.eye(3) - 1)
SECOND = np.float32(9 * np.eye(3) - 2)
# How much of the first look's logits a second one adds.
REUSE = 0.5
# Scores: the brighter a picture, the rather is it looked at twice; at 0.5 both are worth the same.
BRIGHT = 8.0
COSTS = (2.0, 0.5)
MACS_FIRST, MACS_SECOND = 500_000, 1_500_000
MACS = (MACS_FIRST + MACS_SECOND, MACS_FIRST)
# Lambda, GMACs, top-1, lost, won; of 100 pictures.
POINTS = ((0.0, 0.0015, 0.9, 1, 1), (1.0, 0.001, 0.8, 11, 1), (9.0, 0.0005, 0.5, 40, 0))


def write_hand_made(folder: Path) -> Path:
    """An export with a first look, in `folder`."""
    folder.mkdir(parents=True)
    score = np.float32([[BRIGHT / 3, 0]] * 3)
    networks = [
        _network(folder, "first_look", SMALL, MACS_FIRST, {"logits": FIRST, "scores": score}),
        _network(folder, "classifier", SIDE, MACS_SECOND, {"logits": SECOND}),
    ]
    manifest = {
        "format": "drnet_jax export",
        "format_version": 1,
        "usable": True,
        "model": "by hand",
        "classes": list(CLASSES),
        "resolutions": [SIDE, SMALL],
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", SIDE, SIDE, 3],
            "channels": "RGB",
        },
        "preprocessing": {
            "outside": {
                "upright": "by EXIF",
                "crop": "centred square",
                "crop_fraction_of_shorter_side": 1.0,
                "size": SIDE,
                "filter": "Pillow BILINEAR",
            }
        },
        "networks": networks,
        "cost": {"unit": "GMACs", "each": list(COSTS), "macs": list(MACS), "measured": None},
        "choice": {"first_look_weight": [REUSE, 0.0]},
        "calibration": {
            "num_images": 100,
            "points": [
                {"lambda": lam, "gmacs": gmacs, "top1": top1, "shares": [0.5, 0.5]}
                | {"lost": lost, "won": won}
                for lam, gmacs, top1, lost, won in POINTS
            ],
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _network(
    folder: Path, role: str, size: int, macs: int, outputs: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A file that multiplies mean colours by the matrix of each output."""
    cast = helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)
    mean = helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0)
    nodes = [cast, mean]
    tensors = [numpy_helper.from_array(np.int64([1, 2]), "axes")]
    for name, matrix in outputs.items():
        tensors.append(numpy_helper.from_array(matrix / np.float32(255), f"{name} by colour"))
        nodes.append(helper.make_node("MatMul", ["means", f"{name} by colour"], [name]))
    if role == "first_look":
        # The second score stands for a brightness of 0.5.
        tensors.append(numpy_helper.from_array(np.float32([0, BRIGHT / 2]), "bias"))
        nodes[-1].output[0] = "unbiased"
        nodes.append(helper.make_node("Add", ["unbiased", "bias"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        role,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", matrix.shape[1]])
            for name, matrix in outputs.items()
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    file = f"{role}_{size}.onnx"
    (folder / file).write_bytes(content)
    return {
        "role": role,
        "resolution": size,
        "file": file,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "macs": macs,
        "outputs": list(outputs),
    }


def png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def expected(colour: tuple[int, int, int], lam: float = 0.0) -> dict[str, Any]:
    """What is to be answered to `png(colour)`, by hand."""
    shares = np.array(colour) / 255
    first = shares @ FIRST
    worth = np.array([BRIGHT * shares.mean(), BRIGHT / 2]) - lam * np.array(COSTS)
    choice = int(worth.argmax())
    logits = first if choice == 1 else shares @ SECOND + REUSE * first
    return {
        "label": CLASSES[int(logits.argmax())],
        "confidence": _softmax(logits).max(),
        "ranked": [CLASSES[label] for label in np.argsort(-logits, kind="stable")],
        "resolution": (SIDE, SMALL)[choice],
        "looks": 2 - choice,
        "gmacs": MACS[choice] / 1e9,
        "first": CLASSES[int(first.argmax())],
        "first_confidence": _softmax(first).max(),
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return values / values.sum()


@dataclass
class Response:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server's process."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self,
        path: str,
        body: Any = None,
        kind: str | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Response:
        """A request, POST if it has a body, on a connection of its own unless one is given."""
        used = connection or self.connect()
        headers = {} if kind is None else {"Content-Type": kind}
        used.request("GET" if body is None else "POST", path, body, headers)
        found = used.getresponse()
        # Headers' names are of any case.
        named = {name.lower(): value for name, value in found.getheaders()}
        response = Response(found.status, named, found.read())
        if connection is None:
            used.close()
        return response

    def metrics(self) -> dict[str, float]:
        """Every sample by its name, with its labels as Prometheus writes them."""
        lines = self.ask("/metrics").body.decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def stop(self) -> tuple[int, str]:
        """The exit code after SIGTERM, and what it said at its end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=20)
        return self.process.returncode, said


def command(*arguments: str | Path) -> subprocess.Popen[str]:
    """The server's program."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    return subprocess.Popen(
        [sys.executable, "-m", "drnet_runtime.serve", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Running]:
    """A server of an export, until the end of the block."""
    process = command(folder, "--port=0", "--threads=1", *arguments)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving "), line + process.stdout.read()
    running = Running(process, int(line.rstrip().rstrip("/").rsplit(":", 1)[1]))
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
