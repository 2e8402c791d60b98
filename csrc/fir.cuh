// The FIR core: up, filter, down in one pass, with a load functor before the filter and a store functor after it.
//
// A block takes a tile and goes down its rows. Each input row is loaded once, in 16-byte vectors and ahead of its use,
// passes the load functor and goes to shared memory, where threads filter it along x into registers; there the rows
// meet along y, and finished ones go through the store functor. Two buffers take turns, so that one barrier serves
// BATCH rows. Taps that a filter doesn't have are zero: a filter of 3 taps runs as one of 4.
//
// Bytes: every input once but for the halo (DELAY units to the side and below a tile, found in L2), every output once.
#pragma once

#include "fir_plan.cuh"
#include "fir_tile.cuh"
#include "reduce.cuh"

namespace gankern::fir {

template <typename A>
struct Filter {
    View<const A> taps;
    int count;
    bool flip;  // correlate instead of convolve
    A gain;     // along each axis
};

// What `y` is made of along y, for L values at once: the last filtered rows (up = 2), or the unfinished outputs.
template <typename F, typename A, int L>
struct Rows {
    A kept[F::KEPT][L] = {};

    // Row J of a unit comes in.
    template <int J>
    GANKERN_DEVICE void add(const A (&row)[L], const A (&w)[F::TAPS]) {
#pragma unroll
        for (int i = 0; i < L; i++) {
            if constexpr (F::UP == 2) {
#pragma unroll
                for (int k = 0; k + 1 < F::KEPT; k++) kept[k][i] = kept[k + 1][i];
                kept[F::KEPT - 1][i] = row[i];
            } else {
#pragma unroll
                for (int k = F::KEPT - 1; k >= 0; k--) {
                    const A before = J > 0 ? kept[k][i] : k > 0 ? kept[k - 1][i] : A(0);
                    kept[k][i] = before + w[F::DOWN * k + J] * row[i];
                }
            }
        }
    }

    // Output row R of the unit that is complete: the values from `first` on.
    template <int R, int V>
    GANKERN_DEVICE void output(A (&to)[V], int first, const A (&w)[F::TAPS]) const {
#pragma unroll
        for (int i = 0; i < V; i++) {
            to[i] = F::UP == 1 ? kept[F::KEPT - 1][first + i] : w[1 - R] * kept[0][first + i];
            if constexpr (F::UP == 2)
#pragma unroll
                for (int k = 1; k < F::KEPT; k++) to[i] += w[2 * k + 1 - R] * kept[k][first + i];
        }
    }
};

// The taps in the order in which inputs meet them.
template <typename F, typename A>
GANKERN_DEVICE void read_taps(A (&w)[F::TAPS], const Filter<A>& f) {
#pragma unroll
    for (int k = 0; k < F::TAPS; k++) w[k] = k < f.count ? value(f.taps, f.flip ? k : f.count - 1 - k) * f.gain : A(0);
}

// What the store functor reads where a unit's row r of outputs goes.
template <typename Tile, typename Store>
struct Due {
    typename Store::Raw raw[Tile::OUTS] = {};

    GANKERN_DEVICE void fetch(const Store& store, const typename Store::State& state, const Tile& tile, int unit,
                              int r) {
        if constexpr (Store::FETCHES) {
#pragma unroll
            for (int o = 0; o < Tile::OUTS; o++) {
                const auto spot = tile.spot(unit, r, o);
                if (spot.any()) raw[o] = store.fetch(state, spot);
            }
        }
    }
};

template <int R, typename Tile, typename Store, typename Filtered, typename A>
GANKERN_DEVICE void emit(const Store& store, typename Store::State& state, const Tile& tile,
                         const Due<Tile, Store>& due, const Filtered& rows, const A (&w)[Tile::Form::TAPS], int unit) {
#pragma unroll
    for (int o = 0; o < Tile::OUTS; o++) {
        A v[Tile::V];
        rows.template output<R>(v, o * Tile::V, w);
        const auto spot = tile.spot(anew(unit), R, o);
        if (spot.any()) store.put(state, due.raw[o], v, spot);
    }
}

// Where three tensors are read, the code of sm_100 and newer needs one register more than two blocks leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int MOST_READS = 2;
#else
constexpr int MOST_READS = 4;
#endif

// Blocks that a multiprocessor has registers for.
template <typename Tile, typename Load, typename Store>
constexpr int blocks_at_once() {
    using F = typename Tile::Form;
    constexpr int HELD = F::KEPT * Tile::OUTS * Tile::V;
    const bool crowded = Tile::COLUMNS ? HELD > 64 || (Load::READS * Tile::LOADS > MOST_READS && Tile::V > 4)
                                       : F::TAPS == 12 || F::SPAN + HELD > 39;
    const bool roomy = Tile::COLUMNS && F::TAPS == 4 && (F::UP * F::DOWN > 1 || Tile::V <= 4);
    return crowded ? 1 : roomy && Load::EXTRA + Store::EXTRA == 0 ? 3 : 2;
}

// Input rows between two barriers: two where one would leave too few loads under way.
template <typename F>
constexpr int batch_of() {
    return F::UP * F::DOWN == 1 && F::TAPS == 4 ? 2 : 1;
}

template <typename Tile, typename Load, typename Store>
constexpr int batch() {
    return Load::READS + Store::READS == 1 ? batch_of<typename Tile::Form>() : 1;
}

// Tile: ColumnTile or PixelTile. Its sums, where either functor keeps them, go to partial
// [sums, images, tiles, channels].
template <typename Tile, typename Load, typename Store>
GANKERN_KERNEL(THREADS, (blocks_at_once<Tile, Load, Store>()))
filter(Load load, Store store, Filter<typename Tile::A> f, View<typename Tile::A> partial, Plan p) {
    using F = typename Tile::Form;
    using A = typename Tile::A;
    using Held = typename Tile::template Held<Load>;
    constexpr int L = Tile::OUTS * Tile::V, BATCH = batch<Tile, Load, Store>();  // also the units of a turn
    const Tile tile(p);
    typename Load::State in(load, Tile::at(p, threadIdx.x));
    typename Store::State out(store, Tile::at(p, threadIdx.x));
    A w[F::TAPS];
    read_taps<F>(w, f);
    const int row_size = Tile::template row_size<Held>(p);
    const auto memory = shared_memory<Held>(0, 2 * BATCH * row_size);
    Rows<F, A, L> rows;
    Due<Tile, Store> due[BATCH];
    typename Load::Raw raw[BATCH][Tile::LOADS];
    int row = 0, buffer = 0;  // row: counted from the tile's first
#pragma unroll
    for (int b = 0; b < BATCH; b++)
#pragma unroll
        for (int l = 0; l < Tile::LOADS; l++) raw[b][l] = load.fetch(tile.source(row + b, l));
    for (int unit = -F::DELAY; unit < tile.rows; unit += BATCH) {
#pragma unroll
        for (int j = 0; j < BATCH; j++) due[j].fetch(store, out, tile, unit + j, 0);
#pragma unroll
        for (int j = 0; j < F::DOWN * BATCH / BATCH; j++) {
#pragma unroll
            for (int b = 0; b < BATCH; b++)
#pragma unroll
                for (int l = 0; l < Tile::LOADS; l++)
                    tile.template put<Load>(memory, (buffer + b) * row_size, l, load, in, raw[b][l], row + b);
            row += BATCH;
#pragma unroll
            for (int b = 0; b < BATCH; b++)
#pragma unroll
                for (int l = 0; l < Tile::LOADS; l++) raw[b][l] = load.fetch(tile.source(row + b, l));
            __syncthreads();
            A one[L];
            if constexpr (BATCH == 2) {
                tile.filter(one, memory, buffer * row_size, w);
                rows.template add<0>(one, w);
                emit<0>(store, out, tile, due[0], rows, w, unit);
                tile.filter(one, memory, (buffer + 1) * row_size, w);
                rows.template add<0>(one, w);
                emit<0>(store, out, tile, due[1], rows, w, unit + 1);
            } else {
                tile.filter(one, memory, buffer * row_size, w);
                if (j == 0) rows.template add<0>(one, w);
                if constexpr (F::DOWN == 2)
                    if (j == 1) rows.template add<1>(one, w);
                if (j == F::DOWN - 1) {
                    Due<Tile, Store> second;  // read late: more would wait in registers while the row is filtered
                    if constexpr (F::UP == 2) second.fetch(store, out, tile, unit, 1);
                    emit<0>(store, out, tile, due[0], rows, w, unit);
                    if constexpr (F::UP == 2) emit<1>(store, out, tile, second, rows, w, unit);
                }
            }
            buffer = BATCH - buffer;
        }
    }
    if constexpr (Load::State::SUMS > 0) {
        load.complete(in);
        tile.store_sums(in.sums, partial, in.wanted());
    }
    if constexpr (Store::State::SUMS > 0) tile.store_sums(out.sums, partial, out.wanted());
}

// -- nothing before the filter, nothing after it ----------------------------------------------------------------------

// x as it is.
template <typename Tile>
struct PlainLoad {
    using T = typename Tile::Type;
    // converted once, where each is read by four threads and instructions are what is scarce
    using Held = std::conditional_t<batch_of<typename Tile::Form>() == 2, Acc<T>, T>;
    using Raw = Bits;
    static constexpr int READS = 1;
    static constexpr bool ZERO_STAYS = true;
    static constexpr int EXTRA = 0;
    struct State {
        static constexpr int SUMS = 0;
        GANKERN_DEVICE State(const PlainLoad&, const Place&) {}
    };
    View<const T> x;

    template <typename Source>
    GANKERN_DEVICE Raw fetch(const Source& from) const {
        return from.get(x);
    }
    template <typename Source>
    GANKERN_DEVICE Packed<Held, Tile::V> make(State&, const Raw& raw, const Source&) const {
        const auto x = values_of<T>(raw);
        Packed<Held, Tile::V> held;
#pragma unroll
        for (int i = 0; i < Tile::V; i++) {
            if constexpr (std::is_same_v<Held, T>) held.lane[i] = x.lane[i];
            else held.lane[i] = widen(x.lane[i]);
        }
        return held;
    }
};

template <typename Tile>
struct PlainStore {
    using T = typename Tile::Type;
    struct Raw {};
    static constexpr int READS = 0;
    static constexpr bool FETCHES = false;
    static constexpr int EXTRA = 0;
    struct State {
        static constexpr int SUMS = 0;
        GANKERN_DEVICE State(const PlainStore&, const Place&) {}
    };
    View<T> y;

    GANKERN_DEVICE void put(State&, const Raw&, Acc<T> (&v)[Tile::V], const typename Tile::Spot& spot) const {
        spot.write(y, v);
    }
};

// -- launches ---------------------------------------------------------------------------------------------------------

template <typename Tile>
Plan plan_for(const Image& image, int64_t pad_x, int64_t pad_y, bool own, bool vectors_in, bool vectors_out) {
    using F = typename Tile::Form;
    Plan p;
    if constexpr (Tile::COLUMNS) p = plan_columns<F>(image, pad_x, pad_y, Tile::V, own);
    else p = plan_pixels<F>(image, pad_x, pad_y, Tile::V, own, vectors_out);
    p.images = static_cast<int>(image.images), p.channels = image.channels;
    p.planes = image.images * image.channels, p.elements = p.planes * image.height * image.width;
    p.vectors_in = vectors_in;
    return p;
}

template <typename Tile, typename Load, typename Store>
void launch_filter(const Load& load, const Store& store, const Filter<typename Tile::A>& f,
                   View<typename Tile::A> partial, const Plan& p, void* stream) {
    using A = typename Tile::A;
    using H = typename Tile::template Held<Load>;
    constexpr int V = Tile::V, FORM_ROWS = 2 * batch<Tile, Load, Store>();
    const int row = Tile::COLUMNS ? Tile::Form::DOWN * V * THREADS : p.along * p.pitch;
    const size_t rows = sizeof(H) * FORM_ROWS * row;
    const size_t sums = partial.data ? sizeof(A) * Tile::SUM_LANES * THREADS : 0;
    const unsigned blocks = static_cast<unsigned>(int64_t(p.tiles()) * p.tiles_c * (Tile::COLUMNS ? p.images : 1));
    const Grid grid{dim3(blocks), THREADS, std::max(rows, sums), stream};
    launch(filter<Tile, Load, Store>, grid, load, store, f, partial, p);
}

}  // namespace gankern::fir
