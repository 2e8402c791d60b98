"""`gankern env`: what a person pastes in a bug report."""

import argparse
import importlib.metadata
import os
import platform

SWITCHES = (
    "GANKERN_IMPL",
    "GANKERN_CACHE",
    "GANKERN_CUDA_LIB",
    "CUDA_HOME",
    "TRITON_INTERPRET",
    "TRITON_CACHE_DIR",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
PACKAGES = ("torch", "triton", "numpy", "pillow", "safetensors", "tqdm", "tensorboard", "matplotlib")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `env`."""
    parser = subparsers.add_parser("env", help="print versions, devices and each operator's implementation")
    parser.set_defaults(func=run)


def print_kernels() -> None:
    """Whether csrc's kernels are there, why not, and how they were built."""
    import torch

    from gankern import binary
    from gankern.ops import _cuda

    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    library, where = binary.search(capability)
    if library is None:
        print(f"cuda kernels {where}")
        return
    trouble = _cuda.trouble_loading(library)
    print(f"cuda kernels {library}, {where}; {trouble or 'they load'}")
    made = binary.record(library)
    if made:
        print(f"             built {made['date']} for {', '.join(made['archs'])} by {made['compiler']}")
        print(f"             from gankern {made['gankern']}, torch {made['torch']}, flags {made['flags']}")


def print_graphs() -> None:
    """The frontend and cuDNN that fused convolutions would run on, or why they can't."""
    from gankern.ops.cudnn import frontend

    found = frontend.module()
    print(f"cudnn graphs {found if isinstance(found, str) else frontend.versions()}")


def run(args: argparse.Namespace) -> int:
    import torch

    from gankern import __version__, ops
    from gankern.bench import known, report

    commit = report.commit()
    print(f"gankern      {__version__}" + (f" at {commit}" if commit else ""))
    print(f"python       {platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPUs")
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{name:<12} {version}")
    print(f"cuda         {torch.version.cuda or 'torch was built without it'}, cudnn {torch.backends.cudnn.version()}")
    print(f"driver       {report.driver() or 'none of NVIDIA found'}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            print(f"gpu {i}        {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 1e9:.0f} GB")
    else:
        print("gpu          none that torch can use")
    print_kernels()
    print_graphs()
    for name in SWITCHES:
        if os.environ.get(name):
            print(f"{name:<16} {os.environ[name]}")
    for op, row in ops.implementations().items():
        print(f"{op:<20} {row['choice']} ({row['why']}; available: {row['available']})")
    for problem in known.problems(known.setup()):
        print(f"known problem: {problem}")
    return 0
