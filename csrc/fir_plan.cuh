// Where a filter's pixels lie: the units of an axis, and the tiles of an image that blocks take.
//
// A unit of an axis is what repeats along it: `down` inputs and `up` outputs. Unit u reads SPAN inputs from
// down·u − lead on and gives outputs up·u − shift and, for up = 2, the next one. A tile is a range of units each way;
// the inputs from its first unit's first to the next tile's first are its own, so that sums count every input once.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "lines.cuh"

namespace gankern::fir {

template <int UP_, int DOWN_, int TAPS_>
struct Form {
    static constexpr int UP = UP_, DOWN = DOWN_, TAPS = TAPS_;
    static constexpr int SPAN = TAPS / UP;           // inputs that enter an output
    static constexpr int DELAY = (SPAN - 1) / DOWN;  // units read before the first output is complete
    static constexpr int KEPT = SPAN / DOWN;         // filtered rows, or unfinished output rows, that a thread holds
    static_assert(TAPS % (UP * DOWN) == 0);
};

struct Axis {
    int size, out;   // pixels in and out
    int lead, shift;
    int units;
    int odd;  // for up = 2: whether a unit's two outputs, which need the same inputs, begin at an odd one
};

inline int up_to(int64_t a, int64_t multiple) { return static_cast<int>(ceil_div(a, multiple) * multiple); }

// own: the units span all inputs, whether an output needs them or not. align: outputs begin at multiples of it.
template <typename F>
Axis plan_axis(int64_t size, int64_t out, int64_t pad, bool own, int align) {
    constexpr int64_t MOST = 1 << 29;
    if (size > MOST || out > MOST || std::abs(pad) > MOST) throw std::runtime_error("gankern: an image of 2^29 pixels");
    Axis a{static_cast<int>(size), static_cast<int>(out), 0, 0, 0, 0};
    a.odd = F::UP == 2 && pad % 2 == 0;
    a.lead = static_cast<int>(F::UP == 2 ? (pad + a.odd - 1) / 2 : pad);
    const int before = own && a.lead < 0 ? up_to(ceil_div(-a.lead, F::DOWN), align / F::UP) : 0;
    a.lead += F::DOWN * before;
    a.shift = F::UP * before;
    a.units = static_cast<int>(ceil_div(out + a.shift, F::UP));
    if (own) a.units = std::max<int>(a.units, static_cast<int>(ceil_div(size + a.lead, F::DOWN)));
    return a;
}

// The same where every output has a place of its own, and units may begin at odd ones.
template <typename F>
Axis plan_loose_axis(int64_t size, int64_t out, int64_t pad, bool own) {
    Axis a = plan_axis<F>(size, out, pad, own, F::UP);
    a.shift += a.odd;
    a.units = std::max(a.units, static_cast<int>(ceil_div(out + a.shift, F::UP)));
    return a;
}

struct Image {
    int64_t images, channels, height, width, out_height, out_width;
};

struct Plan {
    Axis x, y;
    int64_t channels, planes, elements;  // of a sample; of all samples; of the input
    int images;
    int across;   // threads along the contiguous dimension: vectors of channels, or of output pixels
    int along;    // the others: units of columns, or planes
    int rows;     // units of a tile along y
    int columns;  // units of a tile along x
    int tiles_x, tiles_y, tiles_c;  // tiles_c: of channels, or of planes
    int pitch;                      // rows of pixels: elements of shared memory from one plane to the next
    bool vectors_in, vectors_out;   // rows of pixels: whether 16-byte accesses are aligned

    __host__ __device__ constexpr int tiles() const { return tiles_x * tiles_y; }
};

// Splits y so that about eight blocks fall to each multiprocessor, where there is work for them.
template <typename F>
void plan_rows(Plan& p, int64_t others) {
    constexpr int MOST = 64, LEAST = F::TAPS > 4 ? 16 : 8;
    int rows = MOST;
    while (rows > LEAST && others * ceil_div(p.y.units, rows) < 8 * multiprocessors()) rows /= 2;
    p.tiles_y = static_cast<int>(ceil_div(p.y.units, rows));
    p.rows = static_cast<int>(ceil_div(p.y.units, p.tiles_y));
    if (others * p.tiles_y > INT32_MAX) throw std::runtime_error("gankern: more than 2^31 blocks");
}

// channels_last: threads are vectors of channels by units; the last DELAY units of a tile only lend their inputs.
template <typename F>
Plan plan_columns(const Image& image, int64_t pad_x, int64_t pad_y, int vector, bool own) {
    Plan p{};
    p.x = plan_loose_axis<F>(image.width, image.out_width, pad_x, own);
    p.y = plan_loose_axis<F>(image.height, image.out_height, pad_y, own);
    const int64_t vectors = image.channels / vector;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int along = 8; along <= THREADS; along *= 2) {
        const int across = THREADS / along, columns = along - F::DELAY;
        if (columns < 1 || (across >= 2 * vectors && along < THREADS)) continue;
        const int64_t wide = ceil_div(p.x.units, columns), deep = ceil_div(vectors, across);
        const int64_t narrow = across < 4 && across < vectors ? 4 / across : 1;  // less than two sectors in a row
        const int64_t cost = deep * across * wide * (along + 2 * F::DELAY) * narrow;
        if (cost >= least) continue;
        least = cost, p.across = across, p.along = along, p.columns = columns;
        p.tiles_x = static_cast<int>(wide), p.tiles_c = static_cast<int>(deep);
    }
    plan_rows<F>(p, image.images * p.tiles_x * p.tiles_c);
    return p;
}

// Places of a row of pixels in shared memory: one left out after 32, so that strided accesses meet different banks.
__host__ __device__ constexpr int skewed(int c) { return c + (c >> 5); }

// Input pixels that a tile of `across` vectors of outputs needs of a row.
template <typename F>
__host__ __device__ constexpr int segment(int across, int vector) {
    return F::DOWN * (across * vector / F::UP - 1) + F::SPAN + (F::UP - 1);
}

// NCHW: threads are vectors of output pixels by planes.
template <typename F>
Plan plan_pixels(const Image& image, int64_t pad_x, int64_t pad_y, int vector, bool own, bool vectors_out) {
    Plan p{};
    p.x = plan_axis<F>(image.width, image.out_width, pad_x, own, vector);
    p.y = plan_loose_axis<F>(image.height, image.out_height, pad_y, own);
    p.vectors_out = vectors_out;
    const int64_t planes = image.images * image.channels;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int across = 8; across <= THREADS; across *= 2) {
        const int along = THREADS / across, columns = across * vector / F::UP;
        const int64_t wide = ceil_div(p.x.units, columns), deep = ceil_div(planes, along);
        const int64_t cost = deep * along * wide * (F::DOWN * columns + 2 * F::SPAN + vector);
        if (cost >= least) continue;
        least = cost, p.across = across, p.along = along, p.columns = columns;
        p.tiles_x = static_cast<int>(wide), p.tiles_c = static_cast<int>(deep);
    }
    // planes follow each other in the banks as if they were one row
    const int most = segment<F>(p.across, vector), row = F::DOWN * p.columns;
    p.pitch = most + most / 32 + 1;
    while ((p.pitch - row - row / 32) % 32 != 0) p.pitch++;
    plan_rows<F>(p, int64_t(p.tiles_x) * p.tiles_c);
    return p;
}

}  // namespace gankern::fir
