// What stands before and after the filter where it is joined with bias and activation, linear or leaky ReLU:
//
//   filter_act          y = act(FIR(x) + b)
//   filter_act_grad     dx = FIRᵀ(dy · slope), db its sums before the filter
//   act_filter          z = FIR(act(x + b))
//   act_filter_grad     dx = slope · FIRᵀ(dz), db its sums
//   act_filter_tangent  FIR((v + vb) · slope), the derivative of act_filter
//
// Bytes: x and y; dy, the saved y or x, and dx.
#pragma once

#include "activations.cuh"
#include "fir.cuh"

namespace gankern::fir {

template <typename A>
GANKERN_DEVICE A limited(A v, A limit) {
#ifndef GANKERN_HOST
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(v), "f"(limit));
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(v), "f"(-limit));
    return v;
#else
    return v > limit ? limit : v < -limit ? -limit : v;
#endif
}

// clamp(gain · act(u), ±clamp) in few instructions.
template <typename A>
GANKERN_DEVICE A bent(A u, const Activation<A>& f) {
    const A limit = f.clamp < A(0) ? A(INFINITY) : f.clamp;
    return limited(u * (u > A(0) ? f.gain : f.gain * f.alpha), limit);
}

// gain · slope, 0 where the clamp lets no gradient through; from y, or from u = x + b. Where neither was saved, the
// slope is the same everywhere, and 0 serves in their place.
template <typename A>
GANKERN_DEVICE A rate_at_output(A y, const Activation<A>& f) {
    return unclamped(y, f.clamp) ? slope<true>(f.gain < A(0) ? -y : y, f) * f.gain : A(0);
}

template <typename A>
GANKERN_DEVICE A rate_at_input(A u, const Activation<A>& f) {
    const A a = activate<true>(u, f);
    return unclamped(a * f.gain, f.clamp) ? slope<true>(a, f) * f.gain : A(0);
}

// act(x + b).
template <typename Tile>
struct ActLoad {
    using T = typename Tile::Type;
    using A = Acc<T>;
    using Held = A;
    using Raw = Bits;
    static constexpr int READS = 1;
    static constexpr bool ZERO_STAYS = false;
    static constexpr int EXTRA = 1;
    View<const T> x, bias;
    Activation<A> f;

    struct State {
        static constexpr int SUMS = 0;
        A b[Tile::V];
        GANKERN_DEVICE State(const ActLoad& load, const Place& at) {
            of_channels<Tile::V, Tile::COLUMNS>(b, load.bias, at.channel, at.exists, A(0));
        }
    };

    GANKERN_DEVICE Raw fetch(const typename Tile::Source& from) const { return from.get(x); }
    GANKERN_DEVICE Packed<A, Tile::V> make(State& state, const Raw& raw, const typename Tile::Source&) const {
        const auto x = values_of<T>(raw);
        Packed<A, Tile::V> v;
#pragma unroll
        for (int i = 0; i < Tile::V; i++)
            v.lane[i] = bent(widen(x.lane[i]) + state.b[i], f);
        return v;
    }
};

// dy · slope from the saved y, and its sums.
template <typename Tile>
struct GradLoad {
    using T = typename Tile::Type;
    using A = Acc<T>;
    using Held = A;
    static constexpr int READS = 2;
    static constexpr bool ZERO_STAYS = true;
    static constexpr int EXTRA = 1;
    View<const T> dy, y;
    Activation<A> f;
    bool summed;

    struct Raw {
        Bits dy, y;
    };
    struct State {
        static constexpr int SUMS = 1;
        A sums[1][Tile::SUM_LANES] = {};
        bool summed;
        GANKERN_DEVICE State(const GradLoad& load, const Place&) : summed(load.summed) {}
        GANKERN_DEVICE int wanted() const { return summed; }
    };

    GANKERN_DEVICE Raw fetch(const typename Tile::Source& from) const {
        Raw raw{};
        raw.dy = from.get(dy);
        if (y) raw.y = from.get(y);
        return raw;
    }
    GANKERN_DEVICE Packed<A, Tile::V> make(State& state, const Raw& raw, const typename Tile::Source& from) const {
        const auto dvs = values_of<T>(raw.dy), ys = values_of<T>(raw.y);
        Packed<A, Tile::V> g;
#pragma unroll
        for (int i = 0; i < Tile::V; i++) {
            g.lane[i] = widen(dvs.lane[i]) * rate_at_output<A>(widen(ys.lane[i]), f);
            if (from.owns(i)) state.sums[0][Tile::COLUMNS ? i : 0] += g.lane[i];
        }
        return g;
    }
    GANKERN_DEVICE void complete(State&) const {}
};

// (v + vb) · slope at x + b.
template <typename Tile>
struct TangentLoad {
    using T = typename Tile::Type;
    using A = Acc<T>;
    using Held = A;
    static constexpr int READS = 2;
    static constexpr bool ZERO_STAYS = false;
    static constexpr int EXTRA = 1;
    View<const T> v, vb, x, bias;
    Activation<A> f;

    struct Raw {
        Bits v, x;
    };
    struct State {
        static constexpr int SUMS = 0;
        A b[Tile::V], vb[Tile::V];
        GANKERN_DEVICE State(const TangentLoad& load, const Place& at) {
            of_channels<Tile::V, Tile::COLUMNS>(b, load.bias, at.channel, at.exists, A(0));
            of_channels<Tile::V, Tile::COLUMNS>(vb, load.vb, at.channel, at.exists, A(0));
        }
    };

    GANKERN_DEVICE Raw fetch(const typename Tile::Source& from) const {
        Raw raw{};
        raw.v = from.get(v);
        if (x) raw.x = from.get(x);
        return raw;
    }
    GANKERN_DEVICE Packed<A, Tile::V> make(State& state, const Raw& raw, const typename Tile::Source&) const {
        const auto vs = values_of<T>(raw.v), xs = values_of<T>(raw.x);
        Packed<A, Tile::V> g;
#pragma unroll
        for (int i = 0; i < Tile::V; i++)
            g.lane[i] = (widen(vs.lane[i]) + state.vb[i]) * rate_at_input(widen(xs.lane[i]) + state.b[i], f);
        return g;
    }
};

// y = act(v + b).
template <typename Tile>
struct ActStore {
    using T = typename Tile::Type;
    using A = Acc<T>;
    struct Raw {};
    static constexpr int READS = 0;
    static constexpr bool FETCHES = false;
    static constexpr int EXTRA = 1;
    View<const T> bias;
    View<T> y;
    Activation<A> f;

    struct State {
        static constexpr int SUMS = 0;
        A b[Tile::V];
        GANKERN_DEVICE State(const ActStore& store, const Place& at) {
            of_channels<Tile::V, Tile::COLUMNS>(b, store.bias, at.channel, at.exists, A(0));
        }
    };

    GANKERN_DEVICE void put(State& state, const Raw&, A (&v)[Tile::V], const typename Tile::Spot& spot) const {
#pragma unroll
        for (int i = 0; i < Tile::V; i++) v[i] = bent(v[i] + state.b[i], f);
        spot.write(y, v);
    }
};

// dx = v · slope of the input that stood where v goes, and its sums.
template <typename Tile>
struct GradStore {
    using T = typename Tile::Type;
    using A = Acc<T>;
    using Raw = Bits;
    static constexpr int READS = 1;
    static constexpr bool FETCHES = true;
    static constexpr int EXTRA = 1;
    View<const T> x, bias;
    View<T> dx;
    Activation<A> f;
    bool summed;

    struct State {
        static constexpr int SUMS = 1;
        A b[Tile::V], sums[1][Tile::SUM_LANES] = {};
        bool summed;
        GANKERN_DEVICE State(const GradStore& store, const Place& at) : summed(store.summed) {
            of_channels<Tile::V, Tile::COLUMNS>(b, store.bias, at.channel, at.exists, A(0));
        }
        GANKERN_DEVICE int wanted() const { return summed; }
    };

    GANKERN_DEVICE Raw fetch(const State&, const typename Tile::Spot& spot) const {
        return x ? spot.read(x) : Raw{};
    }
    GANKERN_DEVICE void put(State& state, const Raw& raw, A (&v)[Tile::V], const typename Tile::Spot& spot) const {
        const auto xs = values_of<T>(raw);
#pragma unroll
        for (int i = 0; i < Tile::V; i++) {
            v[i] *= rate_at_input(widen(xs.lane[i]) + state.b[i], f);
            if (spot.has(i)) state.sums[0][Tile::COLUMNS ? i : 0] += v[i];
        }
        spot.write(dx, v);
    }
};

}  // namespace gankern::fir
