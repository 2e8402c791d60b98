"""What cuDNN makes of config F's graphs at 256 and 1024, batch 8, for five GPUs, found without one."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = [pytest.mark.aot, pytest.mark.unforced]

GPUS = 80, 89, 90, 100, 120
NATIVE = 9, 24
"""The first cuDNN whose kernels for these graphs are Hopper's own."""
FEW = 32
"""Channels up to which cuDNN ranks an Ampere-style kernel first."""


def _name(line: dict) -> str:
    return f"{line['graph']} {line['kind']} {line['x']} by {line['w']}, stride {line['stride']}: {line['outputs']}"


def _images(line: dict) -> list[Path]:
    return sorted(Path(line["folder"]).glob("*.cubin"))


def _stride_1(lines: list[dict]) -> list[dict]:
    """What runs, from-RGB aside, whose three channels no tensor core takes."""
    return [line for line in lines if line["runs"] and line["stride"] == 1 and line["w"][1] > 3]


def test_every_graph_builds_on_hopper(plans_on):
    running = [line for line in plans_on(90) if line["runs"]]
    assert len({(line["graph"], line["stride"], line["taps"]) for line in running}) >= 9
    refused = [f"{_name(line)}: {line['refusal']}" for line in running if not line["plan"]]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("gpu", GPUS)
def test_forward_graphs_build(plans_on, gpu):
    forward = [line for line in plans_on(gpu) if line["kind"] == "forward"]
    assert len(forward) >= 8
    refused = [f"{_name(line)}: {line['refusal']}" for line in forward if not line["plan"]]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("gpu", GPUS)
def test_a_graph_is_one_kernel(plans_on, gpu):
    for line in plans_on(gpu):
        if line["plan"]:
            assert len(_images(line)) == len(line["kernels"]) == 1, f"{_name(line)}: {line['kernels']}"


def test_kernels_of_stride_1_are_hoppers_own(plans_on, cuobjdump, cudnn_version):
    if cudnn_version < NATIVE:
        pytest.skip("cuDNN before 9.24 has none")
    seen = {}
    for line in _stride_1(plans_on(90)):
        kernel = line["kernels"][0]
        native = "sm90" in kernel
        if min(line["w"][:2]) <= FEW:
            engines = {name.split("_")[0] for name in line["proposed"]}
            assert native or "eng4" in engines, f"{_name(line)}: {line['proposed']}"
            continue
        assert native, f"{_name(line)}: {kernel}"
        if kernel not in seen:  # equal kernels serve several sizes
            seen[kernel] = cuobjdump("-sass", _images(line)[0])
        assert "HGMMA" in seen[kernel], _name(line)
    assert seen


STACK = {
    ("layer", "ys", 0): 0,
    ("layer", "ys", 1): 160,
    ("layer", "ys", 2): 640,
    ("layer", "y", 1): 0,
    ("conv", "y", 0): 0,
    ("conv_gradient", "dt'", 0): 0,
    ("layer_gradient", "dt'", 0): 2232,
}
"""The most bytes a thread of a stride-1 kernel spills: by the graph, what it writes and its noise maps. Operands of
each sample in float32 take registers a tile's every element."""


def test_kernels_of_stride_1_use_no_more_local_memory(plans_on, cuobjdump, cudnn_version):
    if cudnn_version < NATIVE:
        pytest.skip("cuDNN before 9.24 has other kernels")
    for line in _stride_1(plans_on(90)):
        usage = cuobjdump("--dump-resource-usage", _images(line)[0])
        stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("STACK", "LOCAL"))
        sort = line["graph"], line["outputs"][-1], line["maps"]
        assert local == 0, _name(line)
        assert stack <= STACK[sort], f"{_name(line)}: {stack} bytes"


EVERY, HOPPER = set(GPUS), {90}
DATACENTRE = {90, 100}
ACCEPTED = {
    ("layer_gradient", "gradient, sums", 1, 3): DATACENTRE,
    ("layer_gradient", "gradient", 1, 3): DATACENTRE,
    ("layer_gradient", "conv, sums", 1, 3): DATACENTRE,
    ("layer_gradient", "conv", 1, 3): EVERY,
    ("layer_gradient", "conv, sums", 2, 3): HOPPER,
    ("layer_gradient", "conv", 2, 3): EVERY,
    ("layer_gradient", "conv, sums", 2, 6): HOPPER,
    ("layer_gradient", "conv", 2, 6): EVERY,
    ("conv_gradient", "gradient, sums", 1, 3): EVERY,
    ("conv_gradient", "gradient", 1, 3): EVERY,
    ("conv_gradient", "conv, sums", 1, 3): EVERY,
    ("conv_gradient", "conv", 1, 3): EVERY,
    ("conv_gradient", "gradient, sums", 2, 6): EVERY,
    ("conv_gradient", "gradient", 2, 6): EVERY,
}
"""Of each gradient graph, its stride and taps, the GPUs that cuDNN has a kernel for; a layer's sums are of each sample,
the others' are not."""


def test_gradient_graphs_are_taken_where_they_were(plans_on, cudnn_version):
    if cudnn_version < NATIVE:
        pytest.skip("cuDNN before 9.24 takes fewer")
    found = defaultdict(lambda: defaultdict(set))
    for gpu in GPUS:
        for line in plans_on(gpu):
            if line["kind"] != "forward":
                sort = line["graph"], line["kind"], line["stride"], line["taps"]
                found[sort][gpu].add(line["plan"] is not None)
    mixed = [(sort, gpu) for sort, of_gpu in found.items() for gpu, taken in of_gpu.items() if len(taken) > 1]
    assert not mixed, "taken at some sizes only"
    accepted = {sort: {gpu for gpu, taken in of_gpu.items() if taken == {True}} for sort, of_gpu in found.items()}
    assert accepted == ACCEPTED
