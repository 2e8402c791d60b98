"""Plans config F's graphs for a GPU that isn't there, in a process that has the stand-in for its driver.

Usage: planner.py CAPABILITY FOLDER [all]      CAPABILITY: 90; prints a line of JSON for each graph, images in FOLDER
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from gankern.models.stylegan2 import Discriminator, Generator
from gankern.ops.cudnn import frontend, merging, plans, synthesis_backward
from gankern.ops.cudnn.graph import Graph, Step
from gankern.ops.cudnn.layers import nhwc

BATCH, CHANNEL_BASE = 8, 32768
GPUS = {80: (108, 166912), 89: (128, 101376), 90: (132, 232448), 100: (148, 232448), 120: (170, 101376)}
"""Of each capability one: its multiprocessors, the bytes of shared memory that a block can have."""


def device(capability: int):
    """What cuDNN asks a GPU for."""
    count, shared = GPUS[capability]
    facts = {
        **{"deviceVer": capability * 10, "smVersion": capability * 10, "driverVer": 13000, "deviceName": "stub"},
        **{"multiProcessorCount": count, "smCountOrigin": 0, "warpSize": 32, "cudaDeviceId": 0, "deviceId": 0},
        **{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "maxThreadsPerBlock": 1024},
        **{"maxSharedMemoryPerBlock": 49152, "reservedSharedMemoryPerBlock": 1024},
        **{"maxSharedMemoryPerBlockOptin": shared, "oversizedSharedMemoryPerBlock": shared},
        **{"maxSharedMemoryPerSM": shared + 1024, "sharedMemPerSM": shared + 1024},
        **{"regsPerBlock": 65536, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerSM": 2048},
        **{"pciDeviceId": 9008, "isTccDriver": 0, "supportCoopLaunch": 1, "l2CacheSize": 52428800},
        **{"smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "memoryBusWidth": 5120},
        **{"totalGlobalMem": 85000000000},
    }
    return frontend.module().create_device_properties(json.dumps(facts))


# -- graphs -----------------------------------------------------------------------------------------------------------


def _calls(resolution: int) -> Iterator:
    """Both networks, without a gradient and with it."""
    options = {"img_resolution": resolution, "channel_base": CHANNEL_BASE, "compute_dtype": torch.bfloat16}
    with torch.device("meta"):
        synthesis, D = Generator(**options).synthesis, Discriminator(**options)
    ws, img = (BATCH, synthesis.num_ws, synthesis.w_dim), (BATCH, 3, resolution, resolution)
    for network, shape in ((synthesis, ws), (D, img)):
        for grad in (False, True):

            def call(network=network, shape=shape, grad=grad):
                with torch.set_grad_enabled(grad):
                    y = network(torch.empty(shape, device="meta", requires_grad=grad))
                    if grad:
                        y.sum().backward()

            yield call


GPU = torch.device("cuda", 0)  # none has to be there


def config_f() -> list[Graph]:
    """Every graph at 256 and 1024, layers merged where that pays and all of them merged."""
    found = {}
    for resolution in (256, 1024):
        for all_merged in (False, True):
            patch = mock.patch.object(merging, "pays", return_value=True) if all_merged else contextlib.nullcontext()
            with patch, mock.patch.object(synthesis_backward, "SUMS_IN_KERNEL", True):
                for call in _calls(resolution):
                    found |= {_alike(graph): graph for graph in plans.graphs_of(call, GPU)}
    return list(found.values())


def _alike(graph: Graph) -> tuple:
    """Equal for graphs that differ only in how far apart small operands lie."""
    return graph.name, graph.steps, tuple(s.shape for _, s in graph.inputs), tuple(n for n, _, _ in graph.outputs)


def without_sums(graph: Graph) -> Graph:
    """What is left for a kernel where a pass of its own makes the sums."""
    outputs = tuple(out for out in graph.outputs if not out[0].startswith("of_"))
    needed, steps = {value for _, value, _ in outputs}, []
    for step in reversed(graph.steps):
        if step.name in needed:
            needed |= set(step.of)
            steps.append(step)
    inputs = tuple(given for given in graph.inputs if given[0] in needed)
    return dataclasses.replace(graph, inputs=inputs, steps=tuple(reversed(steps)), outputs=outputs)


def as_conv(graph: Graph) -> Graph:
    """An input gradient of stride 1 as a convolution by the kernel turned and transposed."""
    (k, c, r, s), dtype = graph.inputs[1][1].shape, graph.io_dtype
    inputs = (graph.inputs[0], ("w", nhwc((c, k, r, s), dtype)), *graph.inputs[2:])
    steps = [
        Step("conv", step.of, step.name, step.shape, (1, r - 1 - step.numbers[1]))
        if step.kind == "input_grad"
        else step
        for step in graph.steps
    ]
    return dataclasses.replace(graph, inputs=inputs, steps=tuple(steps))


def _convolution(graph: Graph) -> Step:
    return next(step for step in graph.steps if step.kind in ("conv", "input_grad"))


def kinds(graph: Graph) -> dict[str, Graph]:
    """A graph, and where it is a gradient what can stand for it."""
    if not graph.name.endswith("gradient"):
        return {"forward": graph}
    step = _convolution(graph)
    form = "gradient" if step.kind == "input_grad" else "conv"
    found = {form: graph}
    if form == "gradient" and step.numbers[0] == 1:
        found["conv"] = as_conv(graph)
    return {f"{name}, sums": g for name, g in found.items()} | {name: without_sums(g) for name, g in found.items()}


def described(graph: Graph, kind: str) -> dict:
    """What a line says of it; `runs` is added: whether it is what the networks run, not what could stand for it."""
    (stride, _), (x, w) = _convolution(graph).numbers, (s.shape for _, s in graph.inputs[:2])
    maps = sum(name.startswith("noise") for name, _ in graph.inputs) if kind == "forward" else 0
    rgb = any(name.startswith("image") for name, _ in graph.inputs)
    extra = {"maps": maps, "rgb": rgb, "outputs": [name for name, _, _ in graph.outputs]}
    return {"graph": graph.name, "kind": kind, "stride": stride, "taps": w[2], "x": x, "w": w, **extra}


def chosen(capability: int, everything: bool) -> list[tuple[dict, Graph]]:
    """All, or of each sort what shows it: on Hopper three sizes of what runs, the smallest, the middle and the largest;
    elsewhere two of forward. Sums for each sample take long to compile."""
    sorts = {}
    for graph in config_f():
        for i, (kind, g) in enumerate(kinds(graph).items()):
            line = described(g, kind) | {"runs": i == 0}
            sort = tuple(str(v) for name, v in line.items() if name not in ("x", "w"))
            sorts.setdefault(sort, []).append((line, g))
    found = []
    for of_sort in sorts.values():
        of_sort.sort(key=lambda pair: (pair[0]["x"][2], pair[0]["x"][1]))
        line, middle, last = of_sort[0][0], len(of_sort) // 2, len(of_sort) - 1
        if everything:
            picked = range(len(of_sort))
        elif line["graph"] == "layer_gradient" and "sums" in line["kind"]:
            picked = [last]
        elif line["runs"] and capability == 90:
            picked = sorted({0, middle, last})
        else:
            picked = sorted({0, last}) if line["kind"] == "forward" else [last]
        found += [of_sort[i] for i in picked]
    return found


# -- planning ---------------------------------------------------------------------------------------------------------


def planned(graph: Graph, properties, folder: Path) -> dict:
    """The first plan that builds, or the refusal; the kernels that cuDNN fetched."""
    os.environ["STUB_IMAGES"] = str(folder)
    folder.mkdir()
    begin = time.perf_counter()
    try:
        g, names = frontend.candidates(graph, device_property=properties)
        plan = next((name for i, name in enumerate(names) if frontend.build(g, i)), None)
        refusal = None if plan else f"none of {len(names)} plans builds"
    except ValueError as error:
        names, plan, refusal = [], None, str(error)
    seconds = round(time.perf_counter() - begin, 2)
    kernels = folder / "kernels"
    fetched = kernels.read_text().split() if kernels.exists() else []
    found = {"plan": plan, "proposed": names, "refusal": refusal, "kernels": fetched}
    return found | {"folder": str(folder), "seconds": seconds}


def main() -> None:
    capability, folder, *rest = sys.argv[1:]
    properties = device(int(capability))
    for i, (line, graph) in enumerate(chosen(int(capability), "all" in rest)):
        print(json.dumps(line | planned(graph, properties, Path(folder) / str(i))), flush=True)


if __name__ == "__main__":
    main()
