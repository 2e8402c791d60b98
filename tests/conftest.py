"""Shared fixtures: golden arrays, small datasets and runs, and the skip of GPU tests where there is no GPU."""

import json
import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core; read when torch is imported

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is decorated, so before the first operator runs

import cudnn_executor  # imports the operators

from gankern import binary, build
from gankern.bench.interpreter import mend
from gankern.cli import main
from gankern.ops import _cuda
from gankern.ops.cudnn import plans

mend()

GOLDEN = Path(__file__).parent / "golden"
BUILDS = binary.cache_dir()  # the user's, whatever the tests set later

os.environ.setdefault("MPLBACKEND", "Agg")


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; the runs that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden():
    """golden("ops") -> dict of every array of tests/golden/ops.npz."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(scope="session")
def golden_json():
    """golden_json("ops") -> the parsed tests/golden/ops.json."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def builds() -> Path:
    """Where compiled libraries are kept from one run of the tests to the next."""
    return BUILDS


@pytest.fixture(scope="session")
def host_build(builds) -> Path:
    """csrc/ built by g++ for CPU tensors, and loaded: seconds once, then from the cache."""
    library = build.build("host", cache=builds)
    _cuda.load_host(library)
    return library


@pytest.fixture
def fused_graphs(monkeypatch):
    """impl="cudnn" on CPU tensors, each graph run step by step, into tensors that hold NaN before; the graphs that
    ran."""
    ran = []

    def execute(graph, given):
        ran.append(graph)
        cudnn_executor.execute(graph, given)

    monkeypatch.setattr(plans, "execute", execute)
    monkeypatch.setattr(plans, "problem", lambda device: None)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty gives
    yield ran
    torch.use_deterministic_algorithms(False)


# -- small datasets and runs ------------------------------------------------------------------------------------------

TINY = "--preset stylegan2 --mapping-layers 2 --channel-base 128 --z-dim 16 --w-dim 16 --batch 8 --kimg 0.032"
TINY = (TINY + " --r1-interval 3 --pl-interval 2 --tick 0.016 --snap 100 --metric-images 4 --device cpu").split()
"""Options of a run of four steps on 16x16 images: less than two seconds."""


@pytest.fixture(scope="session")
def tiny():
    """The options of a tiny run; later ones of the same name win."""
    return TINY


@pytest.fixture(scope="session", autouse=True)
def cache_away(tmp_path_factory):
    """Decoded images never go to the user's cache folder."""
    before = os.environ.get("GANKERN_CACHE")
    os.environ["GANKERN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("GANKERN_CACHE") if before is None else os.environ.update(GANKERN_CACHE=before)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """make_folder(count=12, size=16, classes=0) -> a new folder of smooth PNGs, with dataset.json where classes > 0."""

    def make(count: int = 12, size: int = 16, classes: int = 0) -> Path:
        root = tmp_path_factory.mktemp("images")
        names = [f"{i:03d}.png" for i in range(count)]
        for i, name in enumerate(names):
            coarse = np.random.RandomState(i).randint(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(root / name)
        if classes:
            labels = [[name, i % classes] for i, name in enumerate(names)]
            (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        return root

    return make


@pytest.fixture(scope="session")
def images(make_folder):
    """A folder of twelve 16x16 PNGs; not to be changed."""
    return make_folder()


@pytest.fixture(scope="session")
def labelled(make_folder):
    """The same with labels of three classes."""
    return make_folder(classes=3)


@pytest.fixture
def cli(capsys):
    """cli(*argv) -> (exit code, stdout, stderr) of a command line run in this process."""

    def run(*argv) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as error:  # argparse's
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(cli):
    """refused(*argv, *words): the command ends with exit code 2 and one line on stderr that holds `words`."""

    def check(*argv, words: tuple[str, ...]) -> str:
        code, _, err = cli(*argv)
        assert code == 2, err
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        for word in words:
            assert word in err
        return err

    return check


@pytest.fixture(scope="session")
def one_thread_only():
    """Tiny tensors: threads that wait for each other cost more than they do, and bits depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, images, one_thread_only):
    """The folder of a finished tiny run; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "--data", str(images), "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture(scope="session")
def finished_cond(tmp_path_factory, labelled, one_thread_only):
    """The same of a conditional network of three classes, in two steps."""
    out = tmp_path_factory.mktemp("runs") / "finished_cond"
    assert main(["train", "--data", str(labelled), "--cond", "--out", str(out), *TINY, "--kimg", "0.016"]) == 0
    return out


@pytest.fixture(scope="session")
def network(finished):
    """The network file of the finished run."""
    return max(finished.glob("network-*.safetensors"))


@pytest.fixture(scope="session")
def network_cond(finished_cond):
    """The network file of the conditional run."""
    return max(finished_cond.glob("network-*.safetensors"))
