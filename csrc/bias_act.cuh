// bias_act: y = clamp(gain · act(x + b), ±clamp) [+ residual] in one pass; backward in one, with the bias gradient in the
// same read. Bytes: x and y forward; dy, the saved x or y, and dx backward.
#pragma once

#include "activations.cuh"
#include "reduce.cuh"

namespace gankern::bias_act {

constexpr int FORWARD_UNROLL = 2, FORWARD_WAVES = 32, BACKWARD_WAVES = 6;

// Steps under way at once; the long formulas of the rarer activations leave registers for one.
template <bool TWO_LINES>
constexpr int BACKWARD_UNROLL = TWO_LINES ? 2 : 1;

template <typename T, int V, bool COLUMNS, bool TWO_LINES>
GANKERN_KERNEL(THREADS, 2)
forward(View<const T> x, View<const T> bias, View<const T> residual, View<T> y, Lines p, Activation<Acc<T>> f) {
    using A = Acc<T>;
    const Line<V, COLUMNS> line(p);
    A b[V];
    of_channels<V, COLUMNS>(b, bias, line.channel, line.exists, A(0));
    for (int64_t k = line.first; k < line.steps; k += FORWARD_UNROLL * line.stride) {
        Packed<T, V> in[FORWARD_UNROLL], more[FORWARD_UNROLL];
#pragma unroll
        for (int j = 0; j < FORWARD_UNROLL; j++) {  // all loads are under way before the first value is needed
            if (k + j * line.stride >= line.steps) continue;
            in[j] = load<V>(x, line.at(k + j * line.stride));
            if (residual) more[j] = load<V>(residual, line.at(k + j * line.stride));
        }
#pragma unroll
        for (int j = 0; j < FORWARD_UNROLL; j++) {
            if (k + j * line.stride >= line.steps) continue;
            A v[V], r[V];
            unpack(in[j], v);
            if (residual) unpack(more[j], r);
#pragma unroll
            for (int i = 0; i < V; i++) {
                v[i] = clamped(activate<TWO_LINES>(v[i] + b[i], f) * f.gain, f.clamp);
                if (residual) v[i] += r[i];
            }
            store(y, line.at(k + j * line.stride), pack<T, V>(v));
        }
    }
}

// What backward reads beside dy: nothing where the slope is the same everywhere, else the saved y or x.
enum Saved { NOTHING, OUTPUT, INPUT };

// The gradient of the pre-activation from that of y.
template <bool TWO_LINES, typename A>
GANKERN_DEVICE A through_activation(A dy, A ref, A bias, Saved saved, const Activation<A>& f) {
    if (saved == NOTHING) return dy * f.gain;
    if (saved == OUTPUT) {
        A a;  // of two lines' slopes the sign decides
        if constexpr (TWO_LINES) a = f.gain < A(0) ? -ref : ref;
        else a = f.gain != A(0) ? ref / f.gain : ref;
        return unclamped(ref, f.clamp) ? dy * slope<TWO_LINES>(a, f) * f.gain : A(0);
    }
    const A u = ref + bias, a = activate<TWO_LINES>(u, f);
    return unclamped(a * f.gain, f.clamp) ? dy * slope<TWO_LINES>(f.act == SWISH ? u : a, f) * f.gain : A(0);
}

// dy may be followed by ddb [channels], which is added to it; partial is empty unless the bias gradient is asked for.
template <typename T, int V, bool COLUMNS, bool TWO_LINES>
GANKERN_KERNEL(THREADS, 2)
backward(View<const T> dy, View<const T> ddb, View<const T> ref, View<const T> bias, View<T> dx, View<Acc<T>> partial,
         Lines p, Saved saved, Activation<Acc<T>> f) {
    using A = Acc<T>;
    constexpr int U = BACKWARD_UNROLL<TWO_LINES>;
    const Line<V, COLUMNS> line(p);
    A b[V], extra[V], sums[V] = {};
    of_channels<V, COLUMNS>(b, bias, line.channel, line.exists, A(0));
    of_channels<V, COLUMNS>(extra, ddb, line.channel, line.exists, A(0));
    for (int64_t k = line.first; k < line.steps; k += U * line.stride) {
        Packed<T, V> in[U], held[U];
#pragma unroll
        for (int j = 0; j < U; j++) {
            if (k + j * line.stride >= line.steps) continue;
            in[j] = load<V>(dy, line.at(k + j * line.stride));
            if (saved != NOTHING) held[j] = load<V>(ref, line.at(k + j * line.stride));
        }
#pragma unroll
        for (int j = 0; j < U; j++) {
            if (k + j * line.stride >= line.steps) continue;
            A g[V], r[V] = {};
            unpack(in[j], g);
            if (saved != NOTHING) unpack(held[j], r);
#pragma unroll
            for (int i = 0; i < V; i++) {
                g[i] = through_activation<TWO_LINES>(g[i] + extra[i], r[i], b[i], saved, f);
                sums[i] += g[i];
            }
            store(dx, line.at(k + j * line.stride), pack<T, V>(g));
        }
    }
    if (partial) store_line_sums<V, COLUMNS>(sums, line, p, partial);
}

// -- launches ----------------------------------------------------------------------------------------------------------

template <typename T, int V, bool COLUMNS>
void launch_forward(View<const T> x, View<const T> bias, View<const T> residual, View<T> y, int64_t rows, int64_t cols,
                    int64_t channels, const Activation<Acc<T>>& f, void* stream) {
    const Lines p = plan_lines<V, COLUMNS>(1, rows, cols, channels, FORWARD_UNROLL, FORWARD_WAVES);
    const auto kernel = f.two_lines() ? forward<T, V, COLUMNS, true> : forward<T, V, COLUMNS, false>;
    launch(kernel, {p.blocks(), THREADS, 0, stream}, x, bias, residual, y, p, f);
}

// How backward is laid out; its partial sums are p.splits times the lines' channels or planes.
template <int V, bool COLUMNS>
Lines plan_backward(int64_t rows, int64_t cols, int64_t channels) {
    return plan_lines<V, COLUMNS>(1, rows, cols, channels, 1, BACKWARD_WAVES);
}

template <typename T, int V, bool COLUMNS>
void launch_backward(View<const T> dy, View<const T> ddb, View<const T> ref, View<const T> bias, View<T> dx,
                     View<Acc<T>> partial, const Lines& p, Saved saved, const Activation<Acc<T>>& f, void* stream) {
    const auto kernel = f.two_lines() ? backward<T, V, COLUMNS, true> : backward<T, V, COLUMNS, false>;
    const size_t shared = partial.data ? line_sums_bytes<Acc<T>, V, COLUMNS>() : 0;
    launch(kernel, {p.blocks(), THREADS, shared, stream}, dy, ddb, ref, bias, dx, partial, p, saved, f);
}

}  // namespace gankern::bias_act
