"""Generators for other runtimes: torch.export programs (.pt2) and ONNX files of plain operators, any batch, checked by
running them.
"""

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gankern import ops
from gankern.errors import InputError
from gankern.files import replacing
from gankern.models import progan
from gankern.models.sampling import check_options, seed_latents
from gankern.ops import _impl

TOLERANCE = {".pt2": 1e-5, ".onnx": 1e-4}
"""Of the check, relative to the images' largest value: runtimes sum in other orders."""

BATCHES = (1, 3)
"""With which the file is run, besides the two of the example."""


class _Images(nn.Module):
    """z [N, z_dim] (and c [N, c_dim]) -> images [N, C, R, R], float32, nominally in [-1, 1]."""

    def __init__(self, network: nn.Module, truncation_psi: float, noise_mode: str):
        super().__init__()
        self.network, self.truncation_psi, self.noise_mode = network, truncation_psi, noise_mode

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        if isinstance(self.network, progan.Generator):
            return self.network(z, c, self.network.lod)
        return self.network(z, c, self.truncation_psi, None, self.noise_mode)


def export_generator(
    network: nn.Module, path: Path, *, truncation_psi: float = 1.0, noise_mode: str = "const"
) -> tuple[float, list[str]]:
    """Writes a generator to a .pt2 or .onnx file whose inputs are z and, of a conditional network, c, with a dynamic
    batch; truncation and noise are part of it. Returns the largest difference seen when it was run, relative to the
    images, and the inputs' names.

    Raises InputError where what it needs isn't installed, or what was written gives other images.
    """
    if noise_mode == "random":
        raise InputError("--noise-mode random: an exported network has no random numbers, expected const or none")
    if not math.isfinite(truncation_psi):
        raise InputError(f"--trunc {truncation_psi}: expected a finite number")
    check_options(network, truncation_psi, None, noise_mode)
    if path.suffix == ".onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    path.parent.mkdir(parents=True, exist_ok=True)
    network = network.cpu().float().eval()
    images, examples = _Images(network, truncation_psi, noise_mode), _inputs(network, 2)
    names = ["z", "c"][: len(examples)]
    with ops.use_impl("reference"), torch.no_grad(), _quiet():
        program = _plain_program(images, examples)
        with replacing(path) as temporary:
            run = _write_onnx(program, temporary, names) if path.suffix == ".onnx" else _write_pt2(program, temporary)
            found = [_difference(images, run, _inputs(network, n)) for n in (2, *BATCHES)]
            worst = max(found, key=lambda x: (math.isnan(x), x))
            if not worst <= TOLERANCE[path.suffix]:
                raise InputError(f"{path}: the exported network's images differ by {worst:.1e}; nothing was written")
    return worst, names


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {' and '.join(missing)}: pip install gankern[export]")


def _inputs(network: nn.Module, n: int) -> tuple[Tensor, ...]:
    z = seed_latents(range(n), network.z_dim)
    if network.c_dim == 0:
        return (z,)
    return z, nn.functional.one_hot(torch.arange(n) % network.c_dim, network.c_dim).float()


def _plain_program(images: nn.Module, examples: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The program in torch's own operators: each of ours is replaced by the Python of its reference and traced again,
    until none is left."""
    shapes = tuple({0: torch.export.Dim("batch")} for _ in examples)
    bodies = {getattr(torch.ops.gankern, name.split("::")[1]).default: body for name, body in _impl.BODIES.items()}
    program = torch.export.export(images, examples, dynamic_shapes=shapes)
    while True:
        module = program.module()
        ours = [node for node in module.graph.nodes if node.op == "call_function" and node.target in bodies]
        if not ours:
            return program.run_decompositions({})
        for node in ours:
            node.target = bodies[node.target]
        module.recompile()
        program = torch.export.export(module, examples, dynamic_shapes=shapes)


def _write_pt2(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Tensor]:
    data = io.BytesIO()  # given a path, it wants one that ends in .pt2
    torch.export.save(program, data)
    path.write_bytes(data.getvalue())
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _write_onnx(program: torch.export.ExportedProgram, path: Path, names: list[str]) -> Callable[..., Tensor]:
    import onnxruntime

    onnx = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["images"])
    path.write_bytes(onnx.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(np.asarray(found))

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress on the output, and torch's warnings to its own developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _difference(images: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    wanted = images(*inputs)
    return ((run(*inputs) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9)).item()
