"""What the ranks of the tests run, as a script under torchrun; and what the test process compares it with, alone.

ranks_util.py checks OUT DATA ARGV...   a run of the command line, then every check; results in OUT/rank-<r>.pt
ranks_util.py run ARGV...               a command line; dies ARGV...: one whose rank 1 gets a signal in an update
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from runs_util import environment
from torch import nn

from gankern.cli import main, train
from gankern.data import BatchStream, open_dataset
from gankern.errors import InputError, RankError
from gankern.metrics.evaluate import Evaluator
from gankern.models.stylegan2 import Generator
from gankern.training import buckets
from gankern.training.config import resolve
from gankern.training.distributed import ALONE, Council, World
from gankern.training.loop import TRAINERS
from gankern.training.torchrun import join

STEPS = 20
SMALL = {"z_dim": 16, "channel_base": 128, "batch_gpu": 4, "mbstd_group": 2, "precision": "fp64", "data": ""}
MODELS = {
    "stylegan2": {"w_dim": 16, "mapping_layers": 1, "batch": 8, "r1_interval": 3, "pl_interval": 2},
    "progan": {"stable_kimg": 0.024, "fade_kimg": 0.032, "kimg": 1.0, "batch_schedule": "4-8:8"},
}


def torchrun(*argv, restarts: int = 0, limit: float = 90) -> subprocess.CompletedProcess:
    """Two ranks of this script."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), __file__, *map(str, argv)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(), **pipe)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # and with it the ranks, which a kill would leave behind
        out, err = process.communicate()
        raise AssertionError(f"still there after {limit} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


# -- what one rank alone does as well ---------------------------------------------------------------------------------


def learned(model: str, world: World = ALONE) -> dict:
    """The gradients that reached Adam in the first step, and the networks after twenty; every phase was taken."""
    torch.manual_seed(0)
    options = SMALL | MODELS[model] | {"model": model}
    config = resolve(options, resolution=8, c_dim=3, identity="", num_gpus=world.size)
    labels = lambda n: torch.eye(3)[torch.randint(3, [n])]  # noqa: E731
    trainer = TRAINERS[model](config, torch.device("cpu"), labels, print, world)
    gradients = []
    for optimizer in (trainer.G_opt, trainer.D_opt):
        optimizer.register_step_pre_hook(lambda o, *_: gradients.append(_gradients(o)) if trainer.steps == 0 else None)
    rng = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        trainer.prepare()
        batch, r = (8, 8) if model == "stylegan2" else (trainer.place.batch, trainer.place.resolution)
        real = torch.randint(256, (batch, 3, r, r), generator=rng, dtype=torch.uint8)
        labelled = torch.eye(3)[torch.randint(3, [batch], generator=rng)]
        trainer.step(real[world.rank :: world.size], labelled[world.rank :: world.size])
    assert trainer.skipped == 0
    networks = {name: getattr(trainer, name).state_dict() for name in ("G", "D", "G_ema")}
    return {"gradients": gradients, "networks": networks, "stats": trainer.pop_stats()}


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def scores(data: Path, world: World = ALONE) -> list:
    """SWD of a network over five images, twice: the second time the reals are there already."""
    torch.manual_seed(0)
    network = Generator(z_dim=8, w_dim=8, num_mapping_layers=1, img_resolution=16, channel_base=128).eval()
    evaluator = Evaluator(open_dataset(data), 5, batch=2, device="cpu", ranks=world)
    return [evaluator.swd(network) for _ in range(2)]


def items(data: Path, world: World = ALONE) -> list[torch.Tensor]:
    """Three batches of six, then two of four, over all ranks."""
    place = {"rank": world.rank, "world_size": world.size}
    with BatchStream(open_dataset(data), 6 // world.size, mirror=True, **place) as stream:
        batches = [next(stream)[0] for _ in range(3)]
        stream.change(4 // world.size)
        return [*batches, next(stream)[0], next(stream)[0]]


# -- what needs two ---------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """Layers of which a pass uses those it is told."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4)).double()
        self.last = nn.Linear(5, 5).bfloat16()

    def forward(self, x: torch.Tensor, use: tuple[int, ...]) -> torch.Tensor:
        for i in use:
            x = self.layers[i](x).tanh()
        return self.last(x.bfloat16()).square().mean()


def reduced(world: World) -> dict:
    """Of several passes the gradients, and how many buckets had set off when the backward pass was over."""
    torch.manual_seed(0)
    network, found, under_way = Parts(), [], []
    reducer = buckets.GradientBuckets(network, world.size, world.told, limit=500)  # two layers a bucket
    finish = buckets._Pass.finish
    buckets._Pass.finish = lambda now: (under_way.append(now._next), finish(now))
    for use, key in PASSES:
        network.zero_grad()
        network(torch.full((2, 5), 0.1 * (world.rank + 1), dtype=torch.float64), use).backward()  # accumulated before
        with reducer.reducing(key):
            network(torch.full((2, 5), 1.0 + world.rank, dtype=torch.float64), use).backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
        network.zero_grad(set_to_none=True)
    buckets._Pass.finish = finish
    return {"gradients": found, "under way": under_way}


PASSES = [((0, 1, 2, 3), "a"), ((0, 1, 2, 3), "a"), ((1, 3), "b"), ((1, 3), "b"), ((0, 2), "b"), ((0, 2), "b")]
PASSES += [((3, 2, 1, 0), "a")]


def agreed(world: World) -> dict:
    """Everything that ranks tell each other, and the errors of one that reach the other."""
    a, b = torch.full([2], 1.0 + world.rank), torch.full([3], 10.0 * world.rank, dtype=torch.float64)
    world.mean_(a, b)
    rows = torch.zeros(5, 2, dtype=torch.int16)
    rows[world.share(5)] = world.rank + 1
    world.gather_(rows)
    found = {"means": (a, b), "rows": rows, "told": world.told({"rank": world.rank})}
    found["most"] = world.most(world.rank, -world.rank)
    weights = {"a": torch.ones(3), "b": torch.arange(4).double()}
    world.check_replicas(weights, "now")
    weights["b"][2] += 1e-15 * world.rank
    found["drifted"] = _raised(lambda: world.check_replicas(weights, "kimg 1"))
    found["options"] = _raised(lambda: world.check_same({"--batch": 8 + world.rank, "--seed": 0}, "expected the same"))

    def fails_on_1() -> None:
        with world.together():
            if world.rank == 1:
                raise InputError("a file")

    found["together"] = _raised(fails_on_1)
    return found


def _raised(function) -> str:
    try:
        function()
    except (InputError, RankError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def checks(out: Path, data: Path, argv: list[str]) -> None:
    """Each result is kept where the test process finds it."""
    with join() as world:
        train.join = lambda timeout: contextlib.nullcontext(world)  # a process meets the others once
        assert main(argv) == 0
        found = {"reduced": reduced(world), "agreed": agreed(world), "items": items(data, world)}
        found |= {model: learned(model, world) for model in MODELS}
        found["scores"] = [score and (score.levels, score.floor) for score in scores(data, world)]
    torch.save(found, out / f"rank-{os.environ['RANK']}.pt")


def dies(argv: list[str]) -> int:
    """Rank 1 dies within an update of the third step: its buckets are under way, and rank 0 waits for them. After a
    restart it is asked to stop, in that step again."""
    call, number = {"0": (8, signal.SIGKILL), "1": (1, signal.SIGTERM)}[os.environ["TORCHELASTIC_RESTART_COUNT"]]
    calls, finish = 0, buckets._Pass.finish

    def finish_or_die(now) -> None:
        nonlocal calls
        calls += 1
        if calls == call and os.environ["RANK"] == "1":
            os.kill(os.getpid(), number)
        finish(now)

    buckets._Pass.finish = finish_or_die
    return main(argv)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Council.SECONDS = 0  # they ask each other after every step
    sys.modules |= dict.fromkeys(("matplotlib", "torch.utils.tensorboard"))  # as if not installed: seconds of imports
    if sys.argv[1] == "checks":
        checks(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit({"dies": dies, "run": main}[sys.argv[1]](sys.argv[2:]))
