// upfirdn2d: x and y once each by the FIR core for small separable filters; a plain kernel for every other filter.
#pragma once

#include "fir.cuh"

namespace gankern::fir {

// Up, filter, down as the operator takes them: (x, y) each; only the padding before the image matters, `out` is known.
struct Sampling {
    int64_t up_x, up_y, down_x, down_y, pad_x, pad_y;
    bool flip;
    double gain;

    bool is(int up, int down) const { return up_x == up && up_y == up && down_x == down && down_y == down; }
};

// -- any filter -------------------------------------------------------------------------------------------------------

struct Whole {
    int64_t vectors, channels, height, width, out_height, out_width;  // `channels` inside a pixel, in vectors
    int up_x, up_y, down_x, down_y, pad_x, pad_y, taps_x, taps_y;
    bool separable, flip;
};

// The first tap of output o that meets an input, and that input.
struct Meeting {
    int tap;
    int64_t input;

    GANKERN_DEVICE Meeting(int64_t o, int up, int down, int pad) {
        const int64_t q = o * down - pad;
        tap = static_cast<int>((up - q % up) % up);
        if (tap < 0) tap += up;
        input = (q + tap) / up;
    }
};

// A thread makes V neighbouring values of y, of channels (channels_last) or, V = 1, a pixel.
template <typename T, int V>
GANKERN_KERNEL(THREADS, 2) direct(View<const T> x, View<const Acc<T>> f, View<T> y, Acc<T> gain, Whole p) {
    using A = Acc<T>;
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= p.vectors) return;
    const int64_t c = i % p.channels, pixel = i / p.channels, line = pixel / p.out_width, image = line / p.out_height;
    const Meeting mx(pixel % p.out_width, p.up_x, p.down_x, p.pad_x);
    const Meeting my(line % p.out_height, p.up_y, p.down_y, p.pad_y);
    A sum[V] = {};
    for (int v = my.tap, j = 0; v < p.taps_y; v += p.up_y, j++) {
        const int64_t row = my.input + j;
        if (row < 0 || row >= p.height) continue;
        for (int u = mx.tap, k = 0; u < p.taps_x; u += p.up_x, k++) {
            const int64_t column = mx.input + k;
            if (column < 0 || column >= p.width) continue;
            const int a = p.flip ? u : p.taps_x - 1 - u, b = p.flip ? v : p.taps_y - 1 - v;
            const A w = p.separable ? value(f, a) * value(f, b) : value(f, int64_t(b) * p.taps_x + a);
            A in[V];
            unpack(load<V>(x, (((image * p.height + row) * p.width + column) * p.channels + c) * V), in);
#pragma unroll
            for (int l = 0; l < V; l++) sum[l] += w * in[l];
        }
    }
#pragma unroll
    for (int l = 0; l < V; l++) sum[l] *= gain;
    store(y, i * V, pack<T, V>(sum));
}

template <typename T, int V>
void launch_direct(View<const T> x, View<const Acc<T>> f, View<T> y, const Image& image, const Sampling& s, int taps_x,
                   int taps_y, bool separable, bool columns, void* stream) {
    Whole p;
    const int64_t planes = columns ? image.images : image.images * image.channels;
    p.channels = columns ? image.channels / V : 1;
    p.vectors = planes * p.channels * image.out_height * image.out_width;
    p.height = image.height, p.width = image.width, p.out_height = image.out_height, p.out_width = image.out_width;
    p.up_x = static_cast<int>(s.up_x), p.up_y = static_cast<int>(s.up_y);
    p.down_x = static_cast<int>(s.down_x), p.down_y = static_cast<int>(s.down_y);
    p.pad_x = static_cast<int>(s.pad_x), p.pad_y = static_cast<int>(s.pad_y);
    p.taps_x = taps_x, p.taps_y = taps_y, p.separable = separable, p.flip = s.flip;
    const int64_t blocks = ceil_div(p.vectors, THREADS);
    if (blocks > INT32_MAX) throw std::runtime_error("gankern: more than 2^31 blocks");
    launch(direct<T, V>, {dim3(static_cast<unsigned>(blocks)), THREADS, 0, stream}, x, f, y, Acc<T>(s.gain), p);
}

}  // namespace gankern::fir
