"""Ranks over NCCL: a reduction within a CUDA graph, for which one GPU is enough, and two GPUs against one."""

import pytest
import ranks_util
import torch
import torch.distributed as dist
from runs_util import final_state
from torch import nn

from gankern.training.buckets import GradientBuckets
from gankern.training.graphs import CudaGraphs

pytestmark = pytest.mark.gpu


@pytest.fixture
def one_rank():
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_reduction_is_captured(one_rank):
    """Of a world that is said to be of two and is one: a gradient that was reduced is half of what it was."""
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).cuda()
    buckets = GradientBuckets(network, 2, lambda order: order, limit=4 * 64 * 64)
    x = torch.zeros(8, 64, device="cuda")

    def update() -> list[torch.Tensor]:
        network.zero_grad(set_to_none=True)
        with buckets.reducing("G"):
            network(x).square().mean().backward()
        return [p.grad for p in network.parameters()]

    for _ in range(2):  # which learns the order, and makes NCCL's communicator
        update()
    graphs, kept = CudaGraphs(torch.device("cuda")), []
    replay = graphs.capture(lambda: kept.extend(update()))
    for seed in range(3):
        x.copy_(torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)))
        replay()
        expected = torch.autograd.grad(network(x).square().mean(), list(network.parameters()))
        torch.testing.assert_close(kept, [g / 2 for g in expected])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_learn_what_one_does(images, tmp_path, tiny, cli):
    """Eight steps, of which the last are replayed from graphs."""
    command = ["train", "--data", images, *tiny, "--device", "cuda", "--kimg", "0.064", "--batch-gpu", "4"]
    two = ranks_util.torchrun("run", *command, "--out", tmp_path / "two", limit=300)
    assert two.returncode == 0, two.stderr
    assert cli(*command, "--out", tmp_path / "one")[0] == 0
    a, b = (final_state(tmp_path / name)["trainer"] for name in ("one", "two"))
    for name in ("G", "D", "G_ema"):
        torch.testing.assert_close(a[name], b[name], rtol=0.05, atol=5e-3)
