"""SWD with its floor: both always together."""

import numpy as np
import pytest

from gankern.errors import InputError
from gankern.metrics import disjoint_halves, swd, swd_with_floor


def test_score_is_swd_and_floor_is_between_reals(make_images):
    reals = make_images(60, 32)
    a, b = (reals[i] for i in disjoint_halves(60))
    fake = b.copy()
    fake[:, :, 12:] //= 8
    score = swd_with_floor(a, b, fake, seed=2, device="cpu")
    assert score.levels == swd(a, fake, seed=2, device="cpu")
    assert score.num_images == 30
    assert all(0 < score.floor[k] < score.levels[k] / 2 for k in ("32", "16", "avg"))
    # Other reals in the fakes' place score like the floor.
    assert swd(a, b, seed=9, device="cpu")["avg"] == pytest.approx(score.floor["avg"], rel=0.5)


def test_text_has_every_figure_and_its_floor(make_images):
    score = swd_with_floor(*(make_images(4, 32, seed=seed) for seed in range(3)), device="cpu")
    for text in (str(score), score.table()):
        assert "4 images" in text
        assert "floor" in text
        for values in (score.levels, score.floor):
            for value in values.values():
                assert f"{value:.2f}" in text
    assert "\n" not in str(score)
    assert len({len(line) for line in score.table().splitlines()}) == 1


def test_all_three_sets_must_match(make_images):
    images = make_images(4, 32)
    with pytest.raises(ValueError, match=r"real_a \[4, .*fake \[4, .*real_b \[3, "):
        swd_with_floor(images, images[:3], images)


def test_disjoint_halves():
    for count, expected in ((None, 5), (3, 3)):
        a, b = disjoint_halves(11, count, seed=1)
        assert len(a) == len(b) == expected
        assert len(set(a) | set(b)) == 2 * expected
        assert set(a) | set(b) <= set(range(11))
    assert np.array_equal(disjoint_halves(100, seed=1), disjoint_halves(100, seed=1))
    assert not np.array_equal(disjoint_halves(100, seed=1), disjoint_halves(100, seed=2))
    with pytest.raises(InputError, match="over 6 images need 12 reals: found 11"):
        disjoint_halves(11, 6)
    with pytest.raises(InputError, match="found 1"):
        disjoint_halves(1)
