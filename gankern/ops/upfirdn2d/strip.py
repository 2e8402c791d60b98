# ruff: noqa: RUF005 - Triton does not know (*a, b)
"""The FIR filter as a Triton function, for every kernel that resamples: one strip of output rows, each input row read
once.

A program goes down a strip of output rows with a tile of groups of neighbouring columns. `axis`, for x and for y, is
the constexpr (up, down, pad0, taps, outputs), `outputs` being the columns of a group or the rows of one turn of the
loop: a multiple of the number after which the phases repeat, so that every tap is known while compiling and inserted
zeros are never multiplied. Rows that are filtered along x, or the sums of unfinished outputs, whichever are fewer, stay
in registers. What is read and written goes through two hooks, Triton functions that the caller passes in; each may also
add to `state`, a tuple of tiles of its own.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def reach(o, axis):
    """Output o's first tap, the input that it meets, and how many inputs follow each other from there."""
    up, down, pad, taps, _ = axis
    k = (pad - o * down) % up
    return k, (o * down - pad + k) // up, len(range(k, taps, up))


@triton.constexpr_function
def first(axis):
    """The first input, counted from the strip's own, that any of the outputs needs."""
    starts = [i for _, i, n in (reach(o, axis) for o in range(axis[4])) if n]
    return min(starts, default=0)


@triton.constexpr_function
def count(axis):
    """How many inputs the outputs span; at least one."""
    ends = [i + n for _, i, n in (reach(o, axis) for o in range(axis[4])) if n]
    return max(1, max(ends, default=0) - first(axis))


@triton.constexpr_function
def step(axis):
    """How many inputs lie between two strips."""
    return axis[4] * axis[1] // axis[0]


@triton.constexpr_function
def tap(i, o, axis):
    """The tap with which input i (of `count`) enters output o; -1: none."""
    k, start, n = reach(o, axis)
    at = first(axis) + i - start
    return k + at * axis[0] if 0 <= at < n else -1


@triton.constexpr_function
def outputs(axis):
    return axis[4]


@triton.constexpr_function
def shape(FORM):
    return FORM[4], FORM[5]


@triton.constexpr_function
def taps(X, Y, FORM):
    return X[3] if FORM[0] else X[3] * Y[3]


@triton.constexpr_function
def pairs(FORM, X):
    """Whether a group's two columns go to `store` interleaved, as one tile of twice the width."""
    return not FORM[3] and X[4] == 2


@triton.constexpr_function
def handed(FORM, X):
    return 1 if pairs(FORM, X) else X[4]


@triton.constexpr_function
def out_shape(FORM, X):
    """The shape of the tiles that `store` gets."""
    return FORM[4], FORM[5] * (2 if pairs(FORM, X) else 1)


@triton.constexpr_function
def rolls(FORM, Y):
    """Whether filtered input rows are kept until their outputs are due (fewer of them than of unfinished outputs)."""
    return FORM[0] and Y[0] > Y[1]


@triton.constexpr_function
def kept(FORM, Y):
    """How many rows live from one turn to the next: filtered inputs for `rolls`, else unfinished outputs."""
    if rolls(FORM, Y):
        return max(count(Y) - step(Y), 0)
    ends = ((o, reach(-o, Y)) for o in range(1, Y[3] + Y[0] + 2))
    return max((o for o, (_, i, n) in ends if n and i + n > first(Y)), default=0)


@triton.constexpr_function
def delay(FORM, Y):
    """The turns that only fill what is kept."""
    return -(-kept(FORM, Y) // (step(Y) if rolls(FORM, Y) else Y[4]))


@triton.constexpr_function
def first_row(FORM, Y):
    """The first input row that a strip reads, and below it the first output row that it hands out."""
    return first(Y) + kept(FORM, Y) - delay(FORM, Y) * step(Y) if rolls(FORM, Y) else first(Y)


@triton.constexpr_function
def first_out(FORM, Y):
    return -delay(FORM, Y) * Y[4] if rolls(FORM, Y) else -kept(FORM, Y)


@triton.constexpr_function
def turns(FORM, Y):
    return FORM[6] // Y[4] + delay(FORM, Y)


@triton.constexpr_function
def own_rows(FORM, Y):
    """The input rows from one strip to the next."""
    return FORM[6] * Y[1] // Y[0]


@triton.constexpr_function
def gone(FORM, X, Y):
    """How many of a turn's tiles the next one has no use for."""
    return (step(Y) if rolls(FORM, Y) else Y[4]) * X[4]


@triton.constexpr_function
def enters(j, o, FORM, Y):
    """The tap with which new row j enters output o of those that live, the oldest being 0."""
    return tap(j, o - kept(FORM, Y), Y)


@triton.constexpr_function
def reads_ahead(X, Y, FORM):
    """Whether a turn's loads are issued a turn early: asked for, and few enough to stay in registers."""
    return FORM[7] and count(X) * step(Y) <= 8 and X[4] == 1


@triton.constexpr_function
def own(s, X):
    """Whether column s of a group is its own and not a neighbour's."""
    return 0 <= first(X) + s < step(X)


@triton.jit
def tile_of(pid, planes, dims, X: tl.constexpr, Y: tl.constexpr, FORM: tl.constexpr):
    """Where program `pid` works, for `fir_strip`, and its samples and channels, broadcastable to the tile.

    channels_last: pixels x channels of one sample; else planes (of samples and channels) x pixels.
    """
    H, W, OH, OW, C = dims
    across, strips = tl.cdiv(OW, FORM[4 if FORM[3] else 5] * X[4]), tl.cdiv(OH, FORM[6])
    if FORM[3]:
        blocks = tl.cdiv(C, FORM[5])
        c = (pid % blocks) * FORM[5] + tl.arange(0, FORM[5])[None, :]
        pid = pid // blocks
        n = (pid // (across * strips)).to(tl.int64)
        group = (pid % across) * FORM[4]
        place = (pid // across % strips, group, n * H * W * C, n * OH * OW * C, c, c, c < C)
        return place, n, c
    else:
        number = (pid // (across * strips)) * FORM[4] + tl.arange(0, FORM[4])[:, None]
        plane = number.to(tl.int64)
        group, zero = (pid % across) * FORM[5], pid.to(tl.int64) * 0
        # an addend that the compiler can't know to be 0: one aligned shift among the others would have every thread
        # take 8 neighbours, and the other shifts read them one by one, 16 bytes apart
        lead, lead_out = plane * H * W + (pid >> 31), plane * OH * OW
        if not pairs(FORM, X):
            lead_out += pid >> 31
        place = (pid // across % strips, group, zero, zero, lead, lead_out, number < planes)
        return place, number // C, number % C


@triton.jit
def _weights(f, X: tl.constexpr, Y: tl.constexpr, FORM: tl.constexpr, GAIN: tl.constexpr, ACC: tl.constexpr):
    """The taps in the order in which inputs meet them: [k] of a separable filter, else [ky * kx]."""
    w = ()
    for k in tl.static_range(taps(X, Y, FORM)):
        w = w + (tl.load(f + (k if FORM[1] else taps(X, Y, FORM) - 1 - k)).to(ACC) * GAIN,)
    return w


@triton.jit
def _along(first_one, many: tl.constexpr, FORM: tl.constexpr):
    """`many` numbers from `first_one` along the tile's dimension of pixels."""
    if FORM[3]:
        return first_one + tl.arange(0, many)[:, None]
    else:
        return first_one + tl.arange(0, many)[None, :]


@triton.jit
def _in_columns(place, dims, X: tl.constexpr, FORM: tl.constexpr):
    """For every input that a group spans: (its column, its offset, whether it exists)."""
    W, C = dims[1], dims[4]
    g = _along(place[1], FORM[4 if FORM[3] else 5], FORM) * step(X)
    columns = ()
    for s in tl.static_range(count(X)):
        col = g + (first(X) + s)
        columns = columns + ((col, place[4] + col * (C if FORM[3] else 1), place[6] & ((col >= 0) & (col < W))),)
    return columns


@triton.jit
def _out_columns(place, dims, X: tl.constexpr, FORM: tl.constexpr):
    """The same for what goes to `store`: each output of a group, or the group's two at once where they are neighbours
    in memory and make one wide store."""
    W, C = dims[3], dims[4]
    columns = ()
    if pairs(FORM, X):
        col = _along(place[1] * 2, FORM[5] * 2, FORM)
        columns = columns + ((col, place[5] + col, place[6] & (col < W)),)
    else:
        g = _along(place[1], FORM[4 if FORM[3] else 5], FORM) * X[4]
        for p in tl.static_range(outputs(X)):
            col = g + p
            columns = columns + ((col, place[5] + col * (C if FORM[3] else 1), place[6] & (col < W)),)
    return columns


@triton.jit
def _rows(
    load: tl.constexpr,
    args,
    state,
    turn,
    place,
    dims,
    columns,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    SPEC: tl.constexpr,
    ACC: tl.constexpr,
):
    """The input rows that are new in this turn: for each a tile for every input that a group spans."""
    H, W, C = dims[0], dims[1], dims[4]
    top = place[0] * own_rows(FORM, Y)
    tiles = ()
    for j in tl.static_range(step(Y)):
        row = top + turn * step(Y) + (first_row(FORM, Y) + j)
        start = place[2] + row.to(tl.int64) * W * (C if FORM[3] else 1)
        ok = (row >= 0) & (row < H) & (turn < turns(FORM, Y))
        mine = (row >= top) & (row < top + own_rows(FORM, Y))
        for s in tl.static_range(count(X)):
            col, offset, exists = columns[s]
            v, state = load(args, state, row, col, start, offset, exists & ok, mine, own(s, X), SPEC, ACC)
            tiles = tiles + (v,)
    return tiles, state


@triton.jit
def _combine(
    w, tiles, j: tl.constexpr, p: tl.constexpr, k: tl.constexpr, X: tl.constexpr, FORM: tl.constexpr, ACC: tl.constexpr
):
    """Output column p of new row j, with the taps from w[k] on."""
    total = tl.zeros(shape(FORM), ACC)
    for s in tl.static_range(count(X)):
        if tap(s, p, X) >= 0:
            total += w[k + tap(s, p, X)] * tiles[j * count(X) + s]
    return total


@triton.jit
def _add_row(
    parts, tiles, w, wy, j: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, FORM: tl.constexpr, ACC: tl.constexpr
):
    """`parts`, [rows * PX], with new row j: one row more for `rolls`, else added to the outputs that it enters."""
    across = ()
    if FORM[0]:
        for p in tl.static_range(outputs(X)):
            across = across + (_combine(w, tiles, j, p, 0, X, FORM, ACC),)
    if rolls(FORM, Y):
        new = parts + across
    else:
        new = ()
        for o in tl.static_range((kept(FORM, Y) + outputs(Y)) * outputs(X)):
            if enters(j, o // X[4], FORM, Y) < 0:
                new = new + (parts[o],)
            elif FORM[0]:
                new = new + (parts[o] + wy[enters(j, o // X[4], FORM, Y)] * across[o % X[4]],)
            else:
                new = new + (
                    parts[o] + _combine(w, tiles, j, o % X[4], enters(j, o // X[4], FORM, Y) * X[3], X, FORM, ACC),
                )
    return new


@triton.jit
def _finished(
    parts, wy, r: tl.constexpr, p: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, FORM: tl.constexpr, ACC: tl.constexpr
):
    if rolls(FORM, Y):
        total = tl.zeros(shape(FORM), ACC)
        for i in tl.static_range(kept(FORM, Y) + step(Y)):
            if tap(i, r, Y) >= 0:
                total += wy[tap(i, r, Y)] * parts[i * X[4] + p]
        return total
    else:
        return parts[r * X[4] + p]


@triton.jit
def _emit(
    store: tl.constexpr,
    args,
    state,
    turn,
    r: tl.constexpr,
    parts,
    wy,
    place,
    dims,
    columns,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    SPEC: tl.constexpr,
    ACC: tl.constexpr,
):
    """Hand the turn's output row r to `store`."""
    OH, OW, C = dims[2], dims[3], dims[4]
    top = place[0] * FORM[6]
    row = top + turn * Y[4] + (first_out(FORM, Y) + r)
    start = place[3] + row.to(tl.int64) * OW * (C if FORM[3] else 1)
    ok = (row >= top) & (row < OH) & (row < top + FORM[6])
    for p in tl.static_range(handed(FORM, X)):
        col, offset, exists = columns[p]
        v = _finished(parts, wy, r, p, X, Y, FORM, ACC)
        if pairs(FORM, X):
            v = tl.interleave(v, _finished(parts, wy, r, 1, X, Y, FORM, ACC))
        state = store(args, state, row, col, start, offset, exists & ok, v, SPEC, ACC)
    return state


@triton.jit
def _zeros(many: tl.constexpr, FORM: tl.constexpr, ACC: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(many):
        zeros = zeros + (tl.zeros(shape(FORM), ACC),)
    return zeros


@triton.jit
def fir_strip(
    load: tl.constexpr,
    load_args,
    store: tl.constexpr,
    store_args,
    state,
    f,
    place,
    dims,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    SPEC: tl.constexpr,
    ACC: tl.constexpr,
):
    """Filter one strip, and return the state as the hooks left it.

    load(args, state, row, col, start, offset, mask, mine, OWN, SPEC, ACC) -> (tile, state): the input at start +
    offset, 0 where not mask; `mine` and OWN tell one program, once, of all those that read it.
    store(args, state, row, col, start, offset, mask, v, SPEC, ACC) -> state. SPEC: what both want to know while
    compiling. `place` is of `tile_of`; dims = (H, W, OH, OW, C); FORM = (separable, flip, gain, channels_last, rows and
    columns of the tile, output rows of the strip, whether to read a turn ahead).
    """
    w = _weights(f, X, Y, FORM, 1.0 if FORM[0] else FORM[2], ACC)
    wy = w
    if FORM[0]:
        wy = _weights(f, X, Y, FORM, FORM[2], ACC)
    keep = _zeros(kept(FORM, Y) * outputs(X), FORM, ACC)
    columns, out_columns = _in_columns(place, dims, X, FORM), _out_columns(place, dims, X, FORM)
    tiles, state = _rows(load, load_args, state, 0, place, dims, columns, X, Y, FORM, SPEC, ACC)
    for turn in range(turns(FORM, Y)):
        ahead = tiles
        if reads_ahead(X, Y, FORM):  # before the stores, which loads don't pass
            ahead, state = _rows(load, load_args, state, turn + 1, place, dims, columns, X, Y, FORM, SPEC, ACC)
        parts = keep
        if not rolls(FORM, Y):
            parts = keep + _zeros(outputs(X) * outputs(Y), FORM, ACC)
        for j in tl.static_range(step(Y)):
            parts = _add_row(parts, tiles, w, wy, j, X, Y, FORM, ACC)
        for r in tl.static_range(outputs(Y)):
            state = _emit(store, store_args, state, turn, r, parts, wy, place, dims, out_columns, X, Y, FORM, SPEC, ACC)
        if not reads_ahead(X, Y, FORM):
            ahead, state = _rows(load, load_args, state, turn + 1, place, dims, columns, X, Y, FORM, SPEC, ACC)
        tiles = ahead
        keep = ()
        for o in tl.static_range(kept(FORM, Y) * outputs(X)):
            keep = keep + (parts[gone(FORM, X, Y) + o],)
    return state
