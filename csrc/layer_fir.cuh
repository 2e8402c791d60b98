// The pass between two convolutions of a modulated layer with the filter of an upsampling in it (see layer.cuh):
//
//   forward    v = clamp(gain · act(d·FIR(t) + strength·noise + b)), written as v, as v · s⁺, or both
//   backward   dt = FIRᵀ(d·g), and the four sums over each image
//
// Bytes: t and v; dv, the saved v and dt. The sum that the demodulation's gradient needs is put together at the end:
// d·Σ g·FIR(t) = Σ g·p − strength·Σ g·noise − b·Σ g, where g·p = dv·v wherever the clamp lets a gradient through.
#pragma once

#include "fir_act.cuh"
#include "layer.cuh"

namespace gankern::fir {

// A thread's d or styles, from `at` on, read again for each row: registers are few, and L1 has them.
template <int LANES, typename A>
GANKERN_DEVICE void operand(A (&to)[LANES], View<const A> values, int64_t at, bool exists, A missing) {
    constexpr int W = LANES < VECTOR<A> ? LANES : VECTOR<A>;
#pragma unroll
    for (int i = 0; i < LANES; i += W) {
        Packed<A, W> some;
#pragma unroll
        for (int j = 0; j < W; j++) some.lane[j] = missing;
        if (values && exists) some = load<W>(values, at + anew(i));
#pragma unroll
        for (int j = 0; j < W; j++) to[i + j] = some.lane[j];
    }
}

// What follows the filter.
template <typename Tile>
struct LayerStore {
    using T = typename Tile::Type;
    using A = Acc<T>;
    static constexpr int V = Tile::V, READS = 0, EXTRA = 1;
    static constexpr bool FETCHES = Tile::COLUMNS;
    layer::Operands<T> o;
    View<T> y, ys;
    int64_t channels;

    struct Raw {
        A noise;
    };
    struct State {
        static constexpr int SUMS = 0;
        A d[V], b[V], strength;
        int64_t noise_at, channel_at;  // of the sample's noise; of its first channel's operands
        GANKERN_DEVICE State(const LayerStore& store, const Place& at)
            : strength(store.o.strength ? value(store.o.strength, 0) : A(1)),
              noise_at(at.image * store.o.noise_step), channel_at(at.image * store.channels + at.channel) {
            of_channels<V, Tile::COLUMNS>(d, store.o.d, channel_at, at.exists, A(1));
            of_channels<V, Tile::COLUMNS>(b, store.o.bias, at.channel, at.exists, A(0));
        }
    };

    GANKERN_DEVICE Raw fetch(const State& state, const typename Tile::Spot& spot) const {
        return {o.noise ? value(o.noise, state.noise_at + spot.pixel) : A(0)};
    }
    GANKERN_DEVICE void put(State& state, const Raw& raw, A (&v)[V], const typename Tile::Spot& spot) const {
        A noise = raw.noise * state.strength;
#pragma unroll
        for (int i = 0; i < V; i++) {
            if (!Tile::COLUMNS && o.noise && spot.has(i))
                noise = value(o.noise, state.noise_at + spot.pixel + int64_t(i) * spot.apart()) * state.strength;
            v[i] = bent(v[i] * state.d[i] + (noise + state.b[i]), o.f);
        }
        if (y) spot.write(y, v);
        if (!ys) return;
        A styles[Tile::SUM_LANES];
        operand(styles, o.styles, state.channel_at, true, A(0));
#pragma unroll
        for (int i = 0; i < V; i++) v[i] *= styles[Tile::COLUMNS ? i : 0];
        spot.write(ys, v);
    }
};

// What stands before the filter that takes the gradient back: d·g, and the sums.
template <typename Tile>
struct LayerGradLoad {
    using T = typename Tile::Type;
    using A = Acc<T>;
    using Held = A;
    static constexpr int V = Tile::V, LANES = Tile::SUM_LANES, READS = 3, EXTRA = 1;
    static constexpr bool ZERO_STAYS = true;
    layer::Operands<T> o;
    layer::Gradients<T> from;
    int64_t channels;
    int wanted;

    struct Raw {
        Bits dy, dys, saved;
    };
    struct State {
        static constexpr int SUMS = layer::SUMS;
        A sums[SUMS][LANES] = {};
        int64_t noise_at, channel_at;  // of the sample's noise; of its first channel's operands
        int bits;
        bool exists;
        GANKERN_DEVICE State(const LayerGradLoad& load, const Place& at)
            : noise_at(at.image * load.o.noise_step), channel_at(at.image * load.channels + at.channel),
              bits(load.wanted), exists(at.exists) {}
        GANKERN_DEVICE int wanted() const { return bits; }
    };

    GANKERN_DEVICE Raw fetch(const typename Tile::Source& source) const {
        Raw raw{};
        if (from.dy) raw.dy = source.get(from.dy);
        if (from.dys) raw.dys = source.get(from.dys);
        raw.saved = source.get(from.saved);
        return raw;
    }

    GANKERN_DEVICE Packed<A, V> make(State& state, const Raw& raw, const typename Tile::Source& source) const {
        constexpr bool COLUMNS = Tile::COLUMNS;
        const auto dy = values_of<T>(raw.dy), dys = values_of<T>(raw.dys), saved = values_of<T>(raw.saved);
        Packed<A, V> dt;
        A styles[LANES], d[LANES], noise = A(0);
        operand(styles, from.dys || from.styled ? o.styles : View<const A>{}, state.channel_at, state.exists, A(0));
        operand(d, o.d, state.channel_at, state.exists, A(1));
        if (COLUMNS && o.noise && source.owns(0)) noise = value(o.noise, state.noise_at + source.pixel);
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int lane = COLUMNS ? i : 0;
            const A ds = widen(dys.lane[i]), s = styles[lane], dv = widen(dy.lane[i]) + ds * s;
            A v = widen(saved.lane[i]);
            // where the style is zero nothing reaches v, and nothing tells what it was
            if (from.styled) v = s == A(0) ? A(0) : v / s;
            const bool through = unclamped(v, o.f.clamp);
            const A g = through ? dv * (v > A(0) ? o.f.gain : o.f.gain * o.f.alpha) : A(0);
            if (source.owns(i)) {
                if (!COLUMNS && o.noise) noise = value(o.noise, state.noise_at + source.pixel + i);
                state.sums[0][lane] += g;
                state.sums[1][lane] += g * noise;
                state.sums[2][lane] += through ? dv * v : A(0);
                state.sums[3][lane] += ds * v;
            }
            dt.lane[i] = g * d[lane];
        }
        return dt;
    }

    GANKERN_DEVICE void complete(State& state) const {
        if (!state.exists) return;
        const A strength = o.strength ? value(o.strength, 0) : A(1);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const A b = o.bias ? A(value(o.bias, (state.channel_at + i) % channels)) : A(0);
            state.sums[2][i] -= strength * state.sums[1][i] + b * state.sums[0][i];
        }
    }
};

}  // namespace gankern::fir
