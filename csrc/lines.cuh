// How threads go over activations: each along one line, on which the channels stay the same.
//
// An activation is a matrix [rows, cols] of its memory. channels_last ("COLUMNS"): pixels by channels; a line is V
// neighbouring channels, and its steps go down the rows. NCHW: planes by pixels; a line is a plane, and its steps go along
// the row, V pixels each. So what belongs to a channel is loaded once, and sums over pixels stay in registers.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "device.cuh"

namespace gankern {

constexpr int THREADS = 256;

struct Lines {
    int64_t cols;      // elements of a row
    int64_t lines;     // of an image: vectors of channels, or planes
    int64_t steps;     // of a line: rows, or vectors of pixels
    int64_t image;     // elements of an image
    int64_t channels;
    int images, across, along, tiles, splits;  // a block's threads over lines and steps; blocks over lines and steps

    dim3 blocks() const { return dim3(static_cast<unsigned>(int64_t(images) * tiles * splits)); }
};

// For `images` matrices [rows, cols] of `channels` channels: about `waves` blocks a multiprocessor, so that what a thread
// works out once pays, and at least `unroll` steps for each thread where there are as many.
template <int V, bool COLUMNS>
Lines plan_lines(int64_t images, int64_t rows, int64_t cols, int64_t channels, int unroll, int waves) {
    Lines p;
    p.cols = cols, p.image = rows * cols, p.channels = channels, p.images = static_cast<int>(images);
    p.lines = COLUMNS ? cols / V : rows;
    p.steps = COLUMNS ? rows : cols / V;
    if (COLUMNS) {
        p.tiles = static_cast<int>(ceil_div(p.lines, THREADS));
        p.across = static_cast<int>(ceil_div(p.lines, p.tiles));
        p.along = THREADS / p.across;
    } else {
        p.along = static_cast<int>(std::min<int64_t>(p.steps, THREADS));
        p.across = THREADS / p.along;
        p.tiles = static_cast<int>(ceil_div(p.lines, p.across));
    }
    const int64_t most = ceil_div(p.steps, int64_t(p.along) * unroll);
    const int64_t each = ceil_div(int64_t(multiprocessors()) * waves, p.tiles * images);
    p.splits = static_cast<int>(std::max<int64_t>(1, std::min(each, most)));
    if (p.lines > INT32_MAX || images * p.tiles * p.splits > INT32_MAX)
        throw std::runtime_error("gankern: more than 2^31 planes or blocks");
    return p;
}

// One thread's line: element `at(k)` of the activation for k = first, first + stride, ... below `steps`.
template <int V, bool COLUMNS>
struct Line {
    int64_t first, steps, stride, start, pitch;
    int64_t image, line, channel;  // the image's number; the line's; its first channel
    int split, place, rank;        // the block's share of the line; the thread's among its lines, and along its line
    bool exists;

    GANKERN_DEVICE explicit Line(const Lines& p) {
        const int thread = threadIdx.x;
        place = COLUMNS ? thread % p.across : thread / p.along;
        rank = COLUMNS ? thread / p.across : thread % p.along;
        if (place >= p.across) rank = p.along;  // left over, of no line
        const unsigned block = blockIdx.x, tiles = p.tiles, splits = p.splits;
        split = static_cast<int>(block / tiles % splits);
        image = block / tiles / splits;
        line = int64_t(block % tiles) * p.across + place;
        exists = line < p.lines && rank < p.along;
        first = int64_t(split) * p.along + rank;
        stride = int64_t(p.splits) * p.along;
        steps = exists ? p.steps : 0;
        start = image * p.image + (COLUMNS ? line * V : line * p.cols);
        pitch = COLUMNS ? p.cols : V;
        channel = COLUMNS ? line * V : static_cast<unsigned>(line) % static_cast<unsigned>(p.channels);
    }

    GANKERN_DEVICE int64_t at(int64_t k) const { return start + k * pitch; }
};

// The V values of a line's channels out of `values` [.., channels] from `row` on; `missing` where there is no tensor.
template <int V, bool COLUMNS, typename T>
GANKERN_DEVICE void of_channels(Acc<T> (&to)[V], View<const T> values, int64_t at, bool exists, Acc<T> missing) {
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = missing;
    if (!values || !exists) return;
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = value(values, COLUMNS ? at + i : at);
}

}  // namespace gankern
