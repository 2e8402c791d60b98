// What a thread of the FIR core does in either memory format: which inputs it loads, how it filters them along x, and
// where its outputs go. ColumnTile for channels_last, PixelTile for NCHW.
#pragma once

#include "fir_plan.cuh"
#include "reduce.cuh"

namespace gankern::fir {

GANKERN_DEVICE bool within(int i, int size) { return static_cast<unsigned>(i) < static_cast<unsigned>(size); }

// i, where the compiler doesn't see that it is the same each time: else it keeps every address made of it in registers.
GANKERN_DEVICE int anew(int i) {
#ifndef GANKERN_HOST
    asm volatile("" : "+r"(i));
#endif
    return i;
}

// A vector as it waits for its use: in four registers, where the lanes of a Packed would take one each.
struct Bits {
    uint32_t word[VECTOR_BYTES / 4];
};

template <typename T>
GANKERN_DEVICE Bits bits_of(const Packed<T, VECTOR<T>>& values) {
    Bits bits;
    memcpy(&bits, &values, sizeof(bits));
    return bits;
}

template <typename T>
GANKERN_DEVICE Packed<T, VECTOR<T>> values_of(const Bits& bits) {
    Packed<T, VECTOR<T>> values;
    memcpy(&values, &bits, sizeof(bits));
    return values;
}

// What a thread works on: a tile of one image; its first channel.
struct Place {
    int64_t image, channel;
    int tile;
    bool exists;
};

// Sums of a thread over its pixels -> partial [sums, images, tiles, channels], of those in the bits of `wanted`.
template <int Q, int N, typename A>
GANKERN_DEVICE void store_tile_sums(const A (&sums)[Q][N], View<A> partial, int wanted, const Plan& p, const Place& at,
                                    int rank, int ranks, int distance) {
    int64_t part = at.image * p.tiles() + at.tile;
#pragma unroll
    for (int q = 0; q < Q; q++) {
        if (!(wanted >> q & 1)) continue;
        A s[N];
#pragma unroll
        for (int i = 0; i < N; i++) s[i] = sums[q][i];
        sum_over_ranks<N>(s, shared_memory<A>(0, N * THREADS), rank, ranks, distance);
        if (at.exists && rank == 0)
#pragma unroll
            for (int i = 0; i < N; i++) *partial.write(part * p.channels + at.channel + i, 1) = s[i];
        part += int64_t(p.images) * p.tiles();
    }
}

template <typename T, typename F>
struct ColumnTile {
    using Form = F;
    using Type = T;
    using A = Acc<T>;
    static constexpr bool COLUMNS = true;
    static constexpr int V = VECTOR<T>, LOADS = F::DOWN, OUTS = F::UP, SUM_LANES = V;

    // What lies in shared memory: x itself where nothing is done to it.
    template <typename Load>
    using Held = typename Load::Held;

    // V channels of an input pixel.
    struct Source {
        int64_t at, pixel;
        bool on, owned;  // whether there are any, and whether this block counts them

        GANKERN_DEVICE bool owns(int) const { return on && owned; }
        GANKERN_DEVICE Bits get(View<const T> from) const { return on ? bits_of<T>(load<V>(from, at)) : Bits{}; }
    };

    // V channels of an output pixel.
    struct Spot {
        int64_t at, pixel;
        bool on;

        GANKERN_DEVICE bool any() const { return on; }
        GANKERN_DEVICE bool has(int) const { return true; }
        GANKERN_DEVICE int apart() const { return 0; }
        GANKERN_DEVICE Bits read(View<const T> from) const { return bits_of<T>(load<V>(from, at)); }
        GANKERN_DEVICE void write(View<T> to, const A (&v)[V]) const { store(to, at, pack<T, V>(v)); }
    };

    const Plan& p;
    int64_t in_at, out_at;
    int place, rank, rows, first_row, first_column, out_row, out_column;
    bool exists;

    GANKERN_DEVICE static Place at(const Plan& p, int thread) {
        const unsigned block = blockIdx.x, deep = p.tiles_c, tiles = p.tiles();
        const int64_t channel = int64_t(block % deep * p.across + thread % p.across) * V;
        return {block / deep / tiles, channel, static_cast<int>(block / deep % tiles), channel < p.channels};
    }

    GANKERN_DEVICE explicit ColumnTile(const Plan& plan) : p(plan) {
        const auto [image, channel, tile, there] = at(p, threadIdx.x);
        const int x = tile % p.tiles_x * p.columns, y = tile / p.tiles_x * p.rows;
        place = threadIdx.x, rank = place / p.across;
        rows = p.y.units - y < p.rows ? p.y.units - y : p.rows;
        exists = there;
        first_row = F::DOWN * y - p.y.lead, first_column = F::DOWN * (x + rank) - p.x.lead;
        out_row = F::UP * y - p.y.shift, out_column = F::UP * (x + rank) - p.x.shift;
        in_at = ((image * p.y.size + first_row) * p.x.size + first_column) * p.channels + channel;
        out_at = ((image * p.y.out + out_row) * p.x.out + out_column) * p.channels + channel;
    }

    template <typename H>
    GANKERN_DEVICE static int row_size(const Plan&) {
        return F::DOWN * V * THREADS;
    }

    // Column l of the thread's unit, in a row counted from the tile's first.
    GANKERN_DEVICE Source source(int row, int l) const {
        const int y = first_row + row, x = first_column + l;
        const bool on = exists && row < F::DOWN * (rows - 1) + F::SPAN && within(y, p.y.size) &&
                        within(x, p.x.size);
        const int64_t pixel = int64_t(row) * p.x.size + l;
        return {in_at + pixel * p.channels, int64_t(y) * p.x.size + x, on, row < F::DOWN * rows && rank < p.columns};
    }

    GANKERN_DEVICE Spot spot(int unit, int r, int o) const {
        const int y = out_row + F::UP * unit + r, x = out_column + o;
        const bool on = exists && rank < p.columns && unit >= 0 && unit < rows && within(y, p.y.out) &&
                        within(x, p.x.out);
        const int64_t pixel = int64_t(F::UP * unit + r) * p.x.out + o;
        return {out_at + pixel * p.channels, int64_t(y) * p.x.out + x, on};
    }

    // Shared memory: [16-byte parts of a vector][column of a unit][threads]: neighbours access neighbours.
    template <typename Load>
    GANKERN_DEVICE void put(Shared<typename Load::Held> to, int base, int l, const Load& load,
                            typename Load::State& state, const typename Load::Raw& raw, int row) const {
        using H = typename Load::Held;
        constexpr int W = VECTOR<H> < V ? VECTOR<H> : V;
        const Source from = source(anew(row), l);
        Packed<H, V> values = load.make(state, raw, from);
#pragma unroll
        for (int h = 0; h < V / W; h++) {
            Packed<H, W> part;
#pragma unroll
            for (int i = 0; i < W; i++) part.lane[i] = Load::ZERO_STAYS || from.on ? values.lane[h * W + i] : H{};
            store(to, base + ((h * F::DOWN + l) * THREADS + place) * W, part);
        }
    }

    template <typename H>
    GANKERN_DEVICE void filter(A (&to)[OUTS * V], Shared<H> from, int base, const A (&w)[F::TAPS]) const {
        constexpr int W = VECTOR<H> < V ? VECTOR<H> : V;
#pragma unroll
        for (int i = 0; i < OUTS * V; i++) to[i] = A(0);
        if (rank >= p.columns) return;
        const int first = anew(place);
#pragma unroll
        for (int k = 0; k < F::SPAN; k++) {
#pragma unroll
            for (int h = 0; h < V / W; h++) {
                const int thread = first + k / F::DOWN * p.across;
                const auto part = load<W>(from, base + ((h * F::DOWN + k % F::DOWN) * THREADS + thread) * W);
#pragma unroll
                for (int i = 0; i < W; i++) {
                    const A v = widen(part.lane[i]);
                    if constexpr (F::UP == 1) {
                        to[h * W + i] += w[k] * v;
                    } else {
                        to[h * W + i] += w[2 * k + 1] * v;
                        to[V + h * W + i] += w[2 * k] * v;
                    }
                }
            }
        }
    }

    template <int Q>
    GANKERN_DEVICE void store_sums(const A (&sums)[Q][V], View<A> partial, int wanted) const {
        store_tile_sums(sums, partial, wanted, p, at(p, anew(place)), rank, p.along, p.across);
    }
};

template <typename T, typename F>
struct PixelTile {
    using Form = F;
    using Type = T;
    using A = Acc<T>;
    static constexpr bool COLUMNS = false;
    static constexpr int V = VECTOR<T>, LOADS = F::UP == 2 ? 1 : F::DOWN + 1, OUTS = 1, SUM_LANES = 1;

    // Single numbers, since rows begin anywhere.
    template <typename Load>
    using Held = A;

    // V neighbouring elements of the input's memory, of which first to last - 1 are pixels of the row.
    struct Source {
        int64_t at, pixel;
        int first, last, owned_first, owned_last, place;
        bool whole;

        GANKERN_DEVICE bool has(int i) const { return i >= first && i < last; }
        GANKERN_DEVICE bool owns(int i) const { return i >= owned_first && i < owned_last; }
        GANKERN_DEVICE Bits get(View<const T> from) const {
            if (first >= last) return {};
            if (whole) return bits_of<T>(load<V>(from, at));
            Packed<T, V> values{};
#pragma unroll
            for (int i = 0; i < V; i++)
                if (has(i)) values.lane[i] = *from.read(at + i, 1);
            return bits_of<T>(values);
        }
    };

    // V output pixels of a row: neighbours, or `step` apart where rows aren't aligned to vectors.
    struct Spot {
        int64_t at, pixel;
        int column, step, width;
        bool on, vector;

        GANKERN_DEVICE bool any() const { return on; }
        GANKERN_DEVICE bool has(int i) const { return vector || within(column + i * step, width); }
        GANKERN_DEVICE int apart() const { return step; }
        GANKERN_DEVICE Bits read(View<const T> from) const {
            if (vector) return bits_of<T>(load<V>(from, at));
            Packed<T, V> values{};
#pragma unroll
            for (int i = 0; i < V; i++)
                if (has(i)) values.lane[i] = *from.read(at + int64_t(i) * step, 1);
            return bits_of<T>(values);
        }
        GANKERN_DEVICE void write(View<T> to, const A (&v)[V]) const {
            if (vector) return store(to, at, pack<T, V>(v));
#pragma unroll
            for (int i = 0; i < V; i++)
                if (has(i)) *to.write(at + int64_t(i) * step, 1) = narrow<T>(v[i]);
        }
    };

    const Plan& p;
    int64_t in_at, out_at;
    int rank, plane_at, rows, first_row, first_column, out_row, out_column, most;
    bool exists;

    GANKERN_DEVICE static Place at(const Plan& p, int thread) {
        const unsigned block = blockIdx.x, tiles = p.tiles(), channels = static_cast<unsigned>(p.channels);
        const unsigned plane = block / tiles * p.along + thread / p.across;
        return {plane / channels, plane % channels, static_cast<int>(block % tiles), plane < p.planes};
    }

    GANKERN_DEVICE explicit PixelTile(const Plan& plan) : p(plan) {
        const auto [image, channel, tile, there] = at(p, threadIdx.x);
        const int64_t plane = image * p.channels + channel;
        exists = there, rank = threadIdx.x % p.across, plane_at = threadIdx.x / p.across * p.pitch;
        const int x = tile % p.tiles_x * p.columns, y = tile / p.tiles_x * p.rows;
        rows = p.y.units - y < p.rows ? p.y.units - y : p.rows;
        first_row = F::DOWN * y - p.y.lead, first_column = F::DOWN * x - p.x.lead;
        out_row = F::UP * y - p.y.shift, out_column = F::UP * x - p.x.shift + (p.vectors_out ? V * rank : rank);
        most = segment<F>(p.across, V);
        in_at = (plane * p.y.size + first_row) * p.x.size + first_column;
        out_at = (plane * p.y.out + out_row) * p.x.out + out_column;
    }

    template <typename H>
    GANKERN_DEVICE static int row_size(const Plan& p) {
        return p.along * p.pitch;
    }

    // The l-th of the thread's vectors, in a row counted from the tile's first.
    GANKERN_DEVICE Source source(int row, int l) const {
        Source s;
        const int y = first_row + row;
        const int64_t start = in_at + int64_t(row) * p.x.size;
        s.place = (rank + l * p.across) * V - static_cast<int>(start & (V - 1));
        s.at = start + s.place;
        const int x = first_column + s.place;
        s.pixel = int64_t(y) * p.x.size + x;
        const bool on = exists && row < F::DOWN * (rows - 1) + F::SPAN && within(y, p.y.size) && s.place < most;
        s.first = x < 0 ? -x : 0;
        s.last = !on ? 0 : p.x.size - x < V ? p.x.size - x : V;
        const int own = F::DOWN * p.columns - s.place;
        s.owned_first = s.place < 0 && -s.place > s.first ? -s.place : s.first;
        s.owned_last = row >= F::DOWN * rows ? 0 : own < s.last ? own : s.last;
        s.whole = p.vectors_in && s.at >= 0 && s.at + V <= p.elements;
        return s;
    }

    GANKERN_DEVICE Spot spot(int unit, int r, int) const {
        const int y = out_row + F::UP * unit + r;
        const bool on = exists && unit >= 0 && unit < rows && within(y, p.y.out);
        const bool inside = !p.vectors_out || within(out_column, p.x.out);
        const int64_t at = out_at + int64_t(F::UP * unit + r) * p.x.out;
        return {at, int64_t(y) * p.x.out + out_column, out_column, p.vectors_out ? 1 : p.across, p.x.out, on && inside,
                p.vectors_out};
    }

    template <typename Load>
    GANKERN_DEVICE void put(Shared<A> to, int base, int l, const Load& load, typename Load::State& state,
                            const typename Load::Raw& raw, int row) const {
        const Source from = source(anew(row), l);
        if (from.place >= most) return;
        const auto values = load.make(state, raw, from);
#pragma unroll
        for (int i = 0; i < V; i++)
            if (within(from.place + i, most))
                *to.write(base + plane_at + skewed(from.place + i), 1) = from.has(i) ? A(widen(values.lane[i])) : A(0);
    }

    GANKERN_DEVICE void filter(A (&to)[V], Shared<A> from, int base, const A (&w)[F::TAPS]) const {
        if (!p.vectors_out) filter_apart(to, from, base + plane_at, w);
        else if (F::UP == 1 || p.x.odd == 0) filter_neighbours<0>(to, from, base + plane_at, w);
        else filter_neighbours<1>(to, from, base + plane_at, w);
    }

    template <int Q>
    GANKERN_DEVICE void store_sums(const A (&sums)[Q][1], View<A> partial, int wanted) const {
        store_tile_sums(sums, partial, wanted, p, at(p, anew(threadIdx.x)), rank, p.across, 1);
    }

private:
    // Outputs V·rank to V·rank + V - 1 of the tile.
    template <int ODD>
    GANKERN_DEVICE void filter_neighbours(A (&to)[V], Shared<A> from, int base, const A (&w)[F::TAPS]) const {
        constexpr int STEP = F::DOWN * V / F::UP, WINDOW = (V - 1 + ODD) / F::UP * F::DOWN + F::SPAN;
        const int first = anew(rank) * STEP;
        A in[WINDOW];
#pragma unroll
        for (int k = 0; k < WINDOW; k++)  // a multiple of STEP is looked up, and the places behind it follow
            in[k] = *from.read(base + skewed(first + k / STEP * STEP) + k % STEP, 1);
#pragma unroll
        for (int i = 0; i < V; i++) {
            to[i] = A(0);
#pragma unroll
            for (int k = 0; k < F::SPAN; k++) {
                const int phase = F::UP == 2 ? 1 - (i + ODD) % 2 : 0;
                to[i] += w[F::UP * k + phase] * in[(i + ODD) / F::UP * F::DOWN + k];
            }
        }
    }

    // Outputs rank, rank + across, ...
    GANKERN_DEVICE void filter_apart(A (&to)[V], Shared<A> from, int base, const A (&w)[F::TAPS]) const {
        const int first = anew(rank) + (F::UP == 2 ? p.x.odd : 0);
        A mine[F::SPAN];
#pragma unroll
        for (int k = 0; k < F::SPAN; k++) mine[k] = F::UP == 1 ? w[k] : first % 2 == 0 ? w[2 * k + 1] : w[2 * k];
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int at = (first + i * p.across) / F::UP * F::DOWN;
            to[i] = A(0);
#pragma unroll
            for (int k = 0; k < F::SPAN; k++) to[i] += mine[k] * *from.read(base + skewed(at + k), 1);
        }
    }
};

}  // namespace gankern::fir
