// The pass between two convolutions of a modulated layer, one read and one write each way:
//
//   forward    v = clamp(gain · act(d·u + strength·noise + b)), written as v, as v · s⁺ (the next layer's style), or both
//   backward   g, the gradient of the pre-activation, from those of v and v · s⁺ and one of the two; dt = d·g is written;
//              sums over each image's pixels: Σ g, Σ g·noise, Σ g·(p − strength·noise − b) = d·Σ g·u, Σ dys·v
//
// p comes back from v, by its sign: the activation is linear or leaky ReLU here. What is done to V values of a thread
// stands first, for the kernels with a filter too.
#pragma once

#include "activations.cuh"
#include "reduce.cuh"

namespace gankern::layer {

// STEPS: of a thread at least, where there are as many, so that reading what belongs to its channels pays.
constexpr int SUMS = 4, WAVES = 32, BACKWARD_WAVES = 6, UNROLL = 2, STEPS = 4;

// What a layer applies, without data where it doesn't: d and styles [N, C], noise [1 or N, pixels], strength [], bias [C].
template <typename T>
struct Operands {
    View<const Acc<T>> d, noise, strength, styles;
    View<const T> bias;
    int64_t noise_step;  // from one sample's noise to the next
    Activation<Acc<T>> f;
};

// The same for V values of one sample.
template <typename A, int V>
struct Local {
    A d[V], b[V], styles[V], strength;
};

template <int V, bool COLUMNS, typename T>
GANKERN_DEVICE Local<Acc<T>, V> local(const Operands<T>& o, int64_t image, int64_t channel, int64_t channels, bool exists) {
    using A = Acc<T>;
    Local<A, V> to;
    of_channels<V, COLUMNS>(to.d, o.d, image * channels + channel, exists, A(1));
    of_channels<V, COLUMNS>(to.styles, o.styles, image * channels + channel, exists, A(0));
    of_channels<V, COLUMNS>(to.b, o.bias, channel, exists, A(0));
    to.strength = o.strength ? value(o.strength, 0) : A(1);
    return to;
}

// The noise of V values: of V pixels from `at` on, or, in columns, of the one pixel that all of them belong to.
template <int V, bool COLUMNS, typename A>
GANKERN_DEVICE void noise_of(A (&eta)[V], View<const A> noise, int64_t at) {
    constexpr int W = V < VECTOR<A> ? V : VECTOR<A>;
    if (!noise || COLUMNS) {
        const A one = noise ? value(noise, at) : A(0);
#pragma unroll
        for (int i = 0; i < V; i++) eta[i] = one;
        return;
    }
#pragma unroll
    for (int i = 0; i < V; i += W) {
        const auto some = load<W>(noise, at + i);
#pragma unroll
        for (int j = 0; j < W; j++) eta[i + j] = some.lane[j];
    }
}

// u becomes v.
template <bool TWO_LINES, typename A, int V>
GANKERN_DEVICE void finish(A (&u)[V], const A (&eta)[V], const Local<A, V>& o, const Activation<A>& f) {
#pragma unroll
    for (int i = 0; i < V; i++) {
        const A p = u[i] * o.d[i] + eta[i] * o.strength + o.b[i];
        u[i] = clamped(activate<TWO_LINES>(p, f) * f.gain, f.clamp);
    }
}

// Where backward's operands lie; dy or dys may be missing.
template <typename T>
struct Gradients {
    View<const T> dy, dys, saved;
    bool styled;  // whether v · s⁺ was saved in v's place
};

// The running sums, one of each for every value; the third as Σ g·p until `finish_sums`.
template <typename A, int V>
struct Sums {
    A of[SUMS][V] = {};
};

template <typename T, int V>
struct Raw {
    Packed<T, V> dy, dys, saved;
};

template <int V, typename T>
GANKERN_DEVICE Raw<T, V> load_gradients(const Gradients<T>& from, int64_t at) {
    Raw<T, V> raw{};
    if (from.dy) raw.dy = load<V>(from.dy, at);
    if (from.dys) raw.dys = load<V>(from.dys, at);
    raw.saved = load<V>(from.saved, at);
    return raw;
}

// What V values of one sample need on the way back: divisions are made once, here.
template <typename A, int V>
struct Back {
    A d[V], styles[V], inverse[V];  // inverse: of the style that is in the saved tensor; 0 of a style that is 0, where
                                    // nothing reaches v and nothing tells what it was
    template <bool COLUMNS, typename T>
    GANKERN_DEVICE void read(const Operands<T>& o, bool styled, int64_t at, bool exists) {
        of_channels<V, COLUMNS>(d, o.d, at, exists, A(1));
        of_channels<V, COLUMNS>(styles, o.styles, at, exists, A(0));
#pragma unroll
        for (int i = 0; i < V; i++) inverse[i] = !styled ? A(1) : styles[i] == A(0) ? A(0) : A(1) / styles[i];
    }
};

// dt of V values, which are added to the sums. The activation's slope is one of two, so g·p = dv·v.
template <typename T, int V, typename A>
GANKERN_DEVICE void gradient(A (&dt)[V], const Raw<T, V>& raw, const A (&eta)[V], const Gradients<T>& from,
                             const Back<A, V>& o, const Activation<A>& f, Sums<A, V>& sums) {
    const A up = f.gain, down = f.gain * f.alpha;
#pragma unroll
    for (int i = 0; i < V; i++) {  // lane by lane, since the registers are full
        const A dys = from.dys ? widen(raw.dys.lane[i]) : A(0);
        const A dv = (from.dy ? widen(raw.dy.lane[i]) : A(0)) + dys * o.styles[i];
        const A v = widen(raw.saved.lane[i]) * o.inverse[i];
        const bool through = unclamped(v, f.clamp);
        const A g = through ? dv * (v > A(0) ? up : down) : A(0);
        sums.of[0][i] += g;
        sums.of[1][i] += g * eta[i];
        sums.of[2][i] += through ? dv * v : A(0);
        sums.of[3][i] += dys * v;
        dt[i] = g * o.d[i];
    }
}

// Σ g·p becomes Σ g·(p − strength·noise − b).
template <int V, bool COLUMNS, typename T, typename A>
GANKERN_DEVICE void finish_sums(Sums<A, V>& sums, const Operands<T>& o, int64_t channel, bool exists) {
    A b[V];
    of_channels<V, COLUMNS>(b, o.bias, channel, exists, A(0));
    const A strength = o.strength ? value(o.strength, 0) : A(1);
#pragma unroll
    for (int i = 0; i < V; i++) sums.of[2][i] -= strength * sums.of[1][i] + b[i] * sums.of[0][i];
}

// -- kernels -----------------------------------------------------------------------------------------------------------

// Columns: an image is a matrix of its own. Rows: all images are one matrix, whose rows are planes.
template <int V, bool COLUMNS>
GANKERN_DEVICE int64_t image_of(const Line<V, COLUMNS>& line, const Lines& p) {
    return COLUMNS ? line.image : static_cast<unsigned>(line.line) / static_cast<unsigned>(p.channels);
}

template <typename T, int V, bool COLUMNS, bool TWO_LINES>
GANKERN_KERNEL(THREADS, 2) forward(View<const T> t, Operands<T> o, View<T> y, View<T> ys, Lines p) {
    using A = Acc<T>;
    const Line<V, COLUMNS> line(p);
    const int64_t image = image_of(line, p);
    const auto mine = local<V, COLUMNS>(o, image, line.channel, p.channels, line.exists);
    for (int64_t k = line.first; k < line.steps; k += UNROLL * line.stride) {
        Packed<T, V> in[UNROLL];
#pragma unroll
        for (int j = 0; j < UNROLL; j++)
            if (k + j * line.stride < line.steps) in[j] = load<V>(t, line.at(k + j * line.stride));
#pragma unroll
        for (int j = 0; j < UNROLL; j++) {
            const int64_t step = k + j * line.stride;
            if (step >= line.steps) continue;
            A u[V], eta[V];
            unpack(in[j], u);
            noise_of<V, COLUMNS>(eta, o.noise, image * o.noise_step + (COLUMNS ? step : step * V));
            finish<TWO_LINES>(u, eta, mine, o.f);
            if (y) store(y, line.at(step), pack<T, V>(u));
            if (!ys) continue;
#pragma unroll
            for (int i = 0; i < V; i++) u[i] *= mine.styles[i];
            store(ys, line.at(step), pack<T, V>(u));
        }
    }
}

// `wanted`: bit q for sum q; partial holds those alone, one after the other.
template <typename T, int V, bool COLUMNS>
GANKERN_KERNEL(THREADS, 2)
backward(Gradients<T> from, Operands<T> o, View<T> dt, View<Acc<T>> partial, int wanted, Lines p) {
    using A = Acc<T>;
    const Line<V, COLUMNS> line(p);
    const int64_t image = image_of(line, p);
    Back<A, V> mine;
    mine.template read<COLUMNS>(o, from.styled, image * p.channels + line.channel, line.exists);
    Sums<A, V> sums;
    for (int64_t step = line.first; step < line.steps; step += line.stride) {
        A g[V], eta[V];
        const auto raw = load_gradients<V>(from, line.at(step));
        noise_of<V, COLUMNS>(eta, o.noise, image * o.noise_step + (COLUMNS ? step : step * V));
        gradient(g, raw, eta, from, mine, o.f, sums);
        store(dt, line.at(step), pack<T, V>(g));
    }
    finish_sums<V, COLUMNS>(sums, o, line.channel, line.exists);
    int place = 0;
#pragma unroll
    for (int q = 0; q < SUMS; q++)
        if (wanted >> q & 1) store_line_sums<V, COLUMNS>(sums.of[q], line, p, partial, place++);
}

// -- launches ----------------------------------------------------------------------------------------------------------

// How the lines of `images` images of pixels x channels are laid out: columns for channels_last.
template <int V, bool COLUMNS>
Lines plan(int64_t images, int64_t pixels, int64_t channels, int unroll, int waves) {
    if (COLUMNS) return plan_lines<V, true>(images, pixels, channels, channels, unroll, waves);
    return plan_lines<V, false>(1, images * channels, pixels, channels, unroll, waves);
}

template <typename T, int V, bool COLUMNS>
void launch_forward(View<const T> t, const Operands<T>& o, View<T> y, View<T> ys, int64_t images, int64_t pixels,
                    int64_t channels, void* stream) {
    const Lines p = plan<V, COLUMNS>(images, pixels, channels, STEPS, WAVES);
    const auto kernel = o.f.two_lines() ? forward<T, V, COLUMNS, true> : forward<T, V, COLUMNS, false>;
    launch(kernel, {p.blocks(), THREADS, 0, stream}, t, o, y, ys, p);
}

template <typename T, int V, bool COLUMNS>
void launch_backward(const Gradients<T>& from, const Operands<T>& o, View<T> dt, View<Acc<T>> partial, int wanted,
                     const Lines& p, void* stream) {
    const size_t shared = wanted ? line_sums_bytes<Acc<T>, V, COLUMNS>() : 0;
    launch(backward<T, V, COLUMNS>, {p.blocks(), THREADS, shared, stream}, from, o, dt, partial, wanted, p);
}

}  // namespace gankern::layer
