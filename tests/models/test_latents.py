"""Latents between latents, mixed styles and ws of files, against formulas written out here."""

import itertools
import math
import pickle
import zipfile

import numpy as np
import pytest
import torch

from gankern.errors import InputError
from gankern.models.latents import mix_styles, read_ws, slerp, slerp_curve, spline_curve


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape)).float()


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return math.acos(min(1.0, float(a @ b / a.norm() / b.norm())))


# -- slerp ------------------------------------------------------------------------------------------------------------


def test_slerp_is_the_formula():
    """sin((1-t)θ)/sin θ a + sin(tθ)/sin θ b of unit vectors, the length in between; both ends bit for bit."""
    a, b = randn(0, 3, 32), randn(1, 3, 32)
    assert slerp(a, b, 0).equal(a)
    assert slerp(a, b, 1).equal(b)
    for t in (0.1, 0.5, 0.8):
        for x, y, found in zip(a.double().numpy(), b.double().numpy(), slerp(a, b, t).numpy(), strict=True):
            u, v = x / np.linalg.norm(x), y / np.linalg.norm(y)
            theta = np.arccos(u @ v)
            direction = (np.sin((1 - t) * theta) * u + np.sin(t * theta) * v) / np.sin(theta)
            length = (1 - t) * np.linalg.norm(x) + t * np.linalg.norm(y)
            np.testing.assert_allclose(found, direction * length, rtol=1e-5, atol=1e-6)


def test_slerp_turns_at_constant_speed():
    a, b = randn(2, 64), 3 * randn(3, 64)
    points = [slerp(a, b, k / 10) for k in range(11)]
    steps = [angle(p, q) for p, q in itertools.pairwise(points)]
    assert steps == pytest.approx([angle(a, b) / 10] * 10, rel=1e-4)


def test_slerp_of_degenerate_angles():
    a = randn(4, 8)
    assert slerp(a, a, 0.3).allclose(a, rtol=1e-6)
    assert slerp(a, 2 * a, 0.5).allclose(1.5 * a, rtol=1e-6)
    half = slerp(a, -a, 0.5)  # half a turn, somewhere: of a's length and at a right angle
    assert float(half.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
    assert abs(float(half @ a)) < 1e-5
    assert slerp(a, -a, 1).allclose(-a, atol=1e-6)
    assert slerp(randn(5, 1), -randn(5, 1), 0.5).isfinite().all()  # of one number there is no way around
    assert slerp(torch.zeros(4), torch.zeros(4), 0.5).equal(torch.zeros(4))


@pytest.mark.parametrize("looped", [True, False])
def test_curves_pass_through_their_keys(looped):
    keys = randn(6, 5, 2, 8)
    for make in (slerp_curve, spline_curve):
        curve = make(keys, looped)
        for k, key in enumerate(keys):
            assert curve(k).equal(key)
        if looped:
            assert curve(5 - 1e-9).allclose(keys[0], atol=1e-5)


# -- cubic splines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [2, 3, 4, 9])
@pytest.mark.parametrize("looped", [True, False])
def test_spline_is_the_solved_system(keys, looped):
    """Against the second derivatives that numpy solves from the textbook's tridiagonal system."""
    y = np.random.RandomState(7).randn(keys, 6)
    system, right = np.zeros((keys, keys)), np.zeros_like(y)
    for k in range(keys):
        if not looped and k in (0, keys - 1):
            system[k, k] = 1
            continue
        for step, weight in ((-1, 1), (0, 4), (1, 1)):
            system[k, (k + step) % keys] += weight
        right[k] = 6 * (y[k - 1] - 2 * y[k] + y[(k + 1) % keys])
    m = np.linalg.solve(system, right)
    curve = spline_curve(torch.from_numpy(y), looped)
    for k in range(keys if looped else keys - 1):
        for u in (0.0, 0.25, 0.5, 0.9):
            after, a = (k + 1) % keys, 1 - u
            expected = a * y[k] + u * y[after] + ((a**3 - a) * m[k] + (u**3 - u) * m[after]) / 6
            np.testing.assert_allclose(curve(k + u).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("looped", [True, False])
def test_spline_is_smooth(looped):
    """Value, slope and bend, by differences, are the same on both sides of each knot; free ends don't bend."""
    keys = 6
    curve = spline_curve(randn(8, keys, 4), looped)

    def bends(t: float, h: float = 0.02) -> torch.Tensor:
        """Of the cubic that passes through four points beside t, on one side: value, slope, second derivative."""
        points = torch.stack([curve((t + h * k) % keys if looped else t + h * k).double() for k in (1, 2, 3, 4)])
        system = torch.tensor([[(h * k) ** p for p in range(4)] for k in (1, 2, 3, 4)], dtype=torch.float64)
        return torch.linalg.solve(system, points)[:3]

    for k in range(keys) if looped else range(1, keys - 1):
        before, after = bends(float(k), -0.08), bends(float(k), 0.08)
        for order, tolerance in ((0, 1e-5), (1, 1e-4), (2, 2e-3)):
            assert before[order].allclose(after[order], atol=tolerance), (k, order)
    if not looped:
        for k, side in ((0, 0.08), (keys - 1, -0.08)):
            assert bends(float(k), side)[2].abs().max() < 2e-3


def test_spline_of_a_circle():
    """Sixteen points of a circle: between them the radius stays 1 to the method's order, h^4 / 384."""
    turn = 2 * math.pi * torch.arange(16) / 16
    curve = spline_curve(torch.stack([turn.cos(), turn.sin()], 1), True)
    off = max(abs(float(curve(k + 0.5).norm()) - 1) for k in range(16))
    assert off < (2 * math.pi / 16) ** 4 / 384 * 1.5


# -- styles and files -------------------------------------------------------------------------------------------------


def test_mixed_styles():
    rows, columns = randn(9, 2, 5, 3), randn(10, 4, 5, 3)
    mixed = mix_styles(rows, columns, [0, 3])
    assert mixed.shape == (2, 4, 5, 3)
    for r, c, layer in itertools.product(range(2), range(4), range(5)):
        assert mixed[r, c, layer].equal((columns[c] if layer in (0, 3) else rows[r])[layer])
    assert mix_styles(rows, columns, range(5)).equal(columns[None].expand(2, -1, -1, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_ws_of_a_file(dtype, tmp_path):
    w = np.random.RandomState(0).randn(3, 4, 2).astype(dtype)
    np.savez(tmp_path / "full.npz", w=w)
    assert np.array_equal(read_ws(tmp_path / "full.npz", 4, 2).numpy(), w.astype(np.float32))
    np.savez_compressed(tmp_path / "one.npz", w=w[:, 0], noise=w)
    ws = read_ws(tmp_path / "one.npz", 4, 2)
    assert ws.shape == (3, 4, 2)
    assert all(np.array_equal(ws[:, k].numpy(), w[:, 0].astype(np.float32)) for k in range(4))


class Trap:
    fired = False

    def __reduce__(self):
        return setattr, (Trap, "fired", True)


BAD_WS = {
    "shape": ({"w": np.zeros((2, 3, 2), np.float32)}, r"shape \[2, 3, 2\]"),
    "dimensions": ({"w": np.zeros(2, np.float32)}, r"shape \[2\]"),
    "none": ({"w": np.zeros((0, 4, 2), np.float32)}, r"shape \[0, 4, 2\]"),
    "scalar": ({"w": np.float32(1)}, r"shape \[\]"),
    "name": ({"ws": np.zeros((1, 4, 2))}, "holds ws"),
    "integers": ({"w": np.zeros((1, 4, 2), int)}, "int64"),
    "name of two lines": ({"a\nb": np.zeros(1)}, r"holds a\?b, expected"),
    "not finite": ({"w": np.full((1, 4, 2), np.nan)}, "finite"),
    "beyond float32": ({"w": np.full((1, 4, 2), 1e300)}, "finite"),
    "objects": ({"w": np.array([Trap()], object)}, "can't be read"),
}


@pytest.mark.parametrize("case", BAD_WS)
def test_bad_ws(case, tmp_path):
    arrays, named = BAD_WS[case]
    np.savez(tmp_path / "w.npz", **arrays)
    Trap.fired = False
    with pytest.raises(InputError, match=f"--ws {tmp_path}/w.npz: .*{named}"):
        read_ws(tmp_path / "w.npz", 4, 2)
    assert not Trap.fired


def damage(path, **changes: int) -> None:
    """Of an archive with one deflated file: a byte of its two headers, or of what is compressed."""
    np.savez_compressed(path, w=np.random.RandomState(0).randn(9, 4, 2))
    data = bytearray(path.read_bytes())
    local, central, content = 0, data.index(b"PK\1\2"), data.index(b"w.npy") + 5
    for at, value in changes.items():
        if at == "content":
            data[content + 20 : content + 60] = bytes([value]) * 40
        else:
            field = {"flags": 6, "method": 8}[at]
            data[local + field] = data[central + field + 2] = value
    path.write_bytes(data)


def other(path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w", b"text")


BAD_FILES = {
    "compressed data": (lambda p: damage(p, content=255), "can't be read as .npz .Error -3"),
    "method": (lambda p: damage(p, method=99), "can't be read as .npz .That compression method"),
    "encrypted": (lambda p: damage(p, flags=1), "can't be read as .npz .File 'w.npy' is encrypted"),
    "no array": (other, "w isn't an array, expected an array w"),
    "text": (lambda p: p.write_text("w"), "can't be read"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps(Trap())), "can't be read"),
    "single array": (lambda p: np.save(p.open("wb"), np.zeros((1, 4, 2))), "a single array"),
    "cut short": (lambda p: (np.savez(p, w=np.zeros((9, 4, 2))), p.write_bytes(p.read_bytes()[:200])), "can't be read"),
    "empty": (lambda p: p.write_bytes(b""), "can't be read"),
    "folder": (lambda p: p.mkdir(), "can't be read"),
    "missing": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_no_npz(case, tmp_path):
    make, named = BAD_FILES[case]
    make(tmp_path / "w.npz")
    Trap.fired = False
    with pytest.raises(InputError, match=named):
        read_ws(tmp_path / "w.npz", 4, 2)
    assert not Trap.fired
