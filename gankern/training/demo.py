"""The demo: a small StyleGAN2 on the sample dataset, sized for the device at hand, and what came of it."""

from pathlib import Path

import gankern
from gankern.errors import InputError
from gankern.training.distributed import pick_device
from gankern.training.loop import continue_command, train
from gankern.training.rundir import RunDir
from gankern.training.start import claim, configure

SAMPLE = "examples/emoji64.zip"
CPU = {"preset": "tiny", "resolution": 32, "mirror": True, "kimg": 45.0}
GPU = CPU | {"resolution": 64, "kimg": 600.0, "batch": 32, "precision": "bf16"}
GPU |= {"channel_base": 8192, "channel_max": 256}


def sample_dataset() -> Path:
    """The sample dataset of the clone that gankern runs from. Raises InputError where there is none."""
    for folder in (Path(gankern.__file__).parent.parent, Path.cwd()):
        if (folder / SAMPLE).is_file():
            return folder / SAMPLE
    raise InputError(f"demo: {SAMPLE} not found; run it from a clone of the project, or train on images of your own")


def run_demo(out: Path, *, device: str = "auto", kimg: float | None = None) -> int:
    """Trains (or goes on) in `out` and says what came of it; returns the exit code as `train` does."""
    options = GPU if pick_device(device).type == "cuda" else CPU
    explicit = options | {"data": str(sample_dataset()), "device": device}
    if kimg is not None:
        explicit["kimg"] = kimg
    config = configure(out, explicit)
    run = claim(out, config)
    try:
        code = train(config, run)
        if code == 0:
            run.log(summary(run))
    finally:
        run.close()
    return code


def summary(run: RunDir) -> str:
    """Where the samples are, SWD against the floor and the untrained network, and how to go on."""
    rows = run.read_stats()
    scores = [row for row in rows if "swd" in row]
    first, last = scores[0], scores[-1]
    fakes = max(run.path.glob("fakes-*.png"))
    better = 100 * (1 - last["swd"] / first["swd"])
    return "\n".join(
        (
            f"samples    {fakes}, beside {run.path / 'reals.png'}",
            f"SWD x1000  {last['swd']:.1f} after {last['kimg']:.0f} kimg; the untrained network's {first['swd']:.1f} "
            f"({better:.0f}% less); floor, reals against other reals, {last['swd_floor']:.1f} "
            f"({last['swd_images']} images)",
            f"go on      {continue_command(run)} --kimg {max(2 * last['kimg'], 100):.0f}",
            f"generate   gankern generate --network {max(run.path.glob('network-*.safetensors'))} --seeds 0-15 "
            "--trunc 0.7 --out samples --grid",
        )
    )
