"""Two ranks over gloo against one: gradients, weights, data, scores, what they agree on, and how they end."""

import pytest
import ranks_util
import torch
from runs_util import differences, final_state, stats

from gankern.training.checkpoint import list_checkpoints, load_checkpoint

FOUR = "--kimg 0.032 --tick 0.016 --checkpoint-minutes 1e-9 --keep 9 --precision fp64 --metric-images 0"
"""A checkpoint after each of four steps."""


def argv(images, out, tiny) -> list:
    return ["train", "--data", images, "--out", out, *tiny, *FOUR.split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder, images, tiny) -> list[dict]:
    """What each of two ranks found, after a run in folder/"whole"."""
    process = ranks_util.torchrun("checks", folder, images, *argv(images, folder / "whole", tiny))
    assert process.returncode == 0, process.stderr
    (folder / "said.txt").write_text(process.stdout)
    return [torch.load(folder / f"rank-{r}.pt", weights_only=False) for r in range(2)]


# -- reduction --------------------------------------------------------------------------------------------------------


def test_gradients_are_means(ranks):
    """Each gradient of each pass, whatever layers it reaches, with what was accumulated before."""
    torch.manual_seed(0)
    network = ranks_util.Parts()
    for i, (use, _) in enumerate(ranks_util.PASSES):
        network.zero_grad(set_to_none=True)
        for rank in range(2):
            for x in (0.1 * (rank + 1), 1.0 + rank):
                (network(torch.full((2, 5), x, dtype=torch.float64), use) / 2).backward()
        expected = {name: p.grad for name, p in network.named_parameters()}
        for found in ranks:
            got = found["reduced"]["gradients"][i]
            assert {k for k, g in got.items() if g is None} == {k for k, g in expected.items() if g is None}
            for name, gradient in expected.items():
                tolerance = {"rtol": 0.02, "atol": 1e-3} if name.startswith("last") else {"rtol": 1e-9, "atol": 1e-12}
                if gradient is not None:
                    torch.testing.assert_close(got[name], gradient, **tolerance)


def test_ranks_reduce_to_the_same_bits(ranks):
    assert differences(*(found["reduced"]["gradients"] for found in ranks)) == []


def test_buckets_overlap_the_backward_pass(ranks):
    """All of a pass that goes as the one before it did; none of the first of its key. Where other layers are reached
    under a key that is known, what comes as planned has set off."""
    for found in ranks:
        under_way = found["reduced"]["under way"]
        assert under_way[:4] == [0, 3, 0, 2]  # a bucket of the bfloat16 layer, and two layers each
        assert under_way[5] == 2
        assert under_way[6] == 3  # in another order of use than learned


def test_what_is_agreed_on(ranks):
    for rank, found in enumerate(ranks):
        agreed = found["agreed"]
        assert [t.tolist() for t in agreed["means"]] == [[1.5] * 2, [5.0] * 3]
        assert agreed["told"] == {"rank": 0}
        assert agreed["most"] == [1, 0]
        assert agreed["rows"].tolist()[2 if rank else 0 :] == [[1, 1]] * (0 if rank else 2) + [[2, 2]] * 3


def test_an_error_is_told_once(ranks):
    """By the rank whose error it is; the other ends silently."""
    first, second = (found["agreed"] for found in ranks)
    assert first["drifted"].startswith("RankError: kimg 1: b and 0 more tensors aren't the same on all ranks")
    assert second["options"] == "InputError: --batch 9: rank 0 has 8, expected the same"
    assert second["together"] == "InputError: a file"
    assert (first["options"], first["together"], second["drifted"]) == ("SystemExit: 1",) * 3


# -- against one rank -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ranks_util.MODELS)
def test_two_ranks_learn_what_one_does(model, ranks, one_thread_only):
    """The first gradients, and all weights after twenty steps, of two ranks and of one with twice the accumulation."""
    alone = ranks_util.learned(model)
    close = {"rtol": 1e-6, "atol": 1e-9}
    for found in ranks:
        assert len(alone["gradients"]) == (4 if model == "stylegan2" else 2)
        torch.testing.assert_close(found[model]["gradients"], alone["gradients"], **close)
        torch.testing.assert_close(found[model]["networks"], alone["networks"], **close)
        assert found[model]["stats"] == pytest.approx(alone["stats"], rel=1e-6)
    assert differences(ranks[0][model]["networks"], ranks[1][model]["networks"]) == []


def test_shares_of_the_data(ranks, images):
    whole = ranks_util.items(images)
    for i, batch in enumerate(whole):
        for rank, found in enumerate(ranks):
            assert torch.equal(found["items"][i], batch[rank::2])


def test_sharded_scores(ranks, images, one_thread_only):
    """The reals' share is exact; a sample may differ by one of 255 with the size of its batch."""
    assert ranks[1]["scores"] == [None, None]
    for (levels, floor), alone in zip(ranks[0]["scores"], ranks_util.scores(images), strict=True):
        assert levels == pytest.approx(alone.levels, rel=1e-3)
        assert floor == alone.floor


# -- runs -------------------------------------------------------------------------------------------------------------


def test_only_the_first_rank_speaks(ranks, folder):
    said = (folder / "said.txt").read_text().splitlines()
    assert sum(line.startswith("done: ") for line in said) == 1
    assert len(said) == 4  # the data, two ticks, the end
    rows = [row["nimg"] for row in stats(folder / "whole")]
    assert rows == [0, 16, 32, 32]
    assert final_state(folder / "whole")["data"]["position"] == 32
    assert "ranks = 2\n" in (folder / "whole/config.toml").read_text()


def test_a_job_that_is_broken_twice(ranks, folder, images, tiny, cli, one_thread_only):
    """kill -9 of rank 1 ends rank 0 long before the time-out; the restarted job goes on from the last checkpoint; a
    signal to rank 1 stops both after the same step; one rank alone goes on to where the unbroken run ended."""
    command = argv(images, folder / "broken", tiny)
    broken = ranks_util.torchrun("dies", *command, "--dist-timeout", "500", restarts=1, limit=90)
    assert broken.returncode == 1  # no restart was left
    assert "gankern: rank 0: error: another rank has died or doesn't answer (" in broken.stderr
    assert "]: Traceback" not in broken.stderr  # of a rank; torchrun has its own
    assert "continuing from checkpoint-00000.016" in broken.stdout
    last = broken.stdout.splitlines()[-1]
    assert "stopped at 0.0 of 0.032 kimg; continue with: torchrun --nproc-per-node=2 -m gankern train --resume" in last
    state = load_checkpoint(list_checkpoints(folder / "broken")[-1])
    assert state["trainer"]["nimg"] == 24
    assert differences(load_checkpoint(folder / "whole/checkpoint-00000.024"), state) == []

    code, _, err = cli("train", "--resume", folder / "broken")
    assert code == 0, err
    a, b = final_state(folder / "whole"), final_state(folder / "broken")
    assert a["data"] == b["data"]
    for name in ("G", "D", "G_ema", "pl_mean"):
        torch.testing.assert_close(a["trainer"][name], b["trainer"][name], rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(stats(folder / "whole"), stats(folder / "broken"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
