// pixel_norm: y = x·r, r = (mean x² + eps)^-1/2 over the k channels of a pixel; its backward, and the backward of that.
// Bytes: each tensor once (x and y; dy, x and dx; v, dy, x and two gradients).
//
// Memory is [outer, k, inner]. Pixels whose channels are neighbours (inner == 1: channels_last, latents) lie in the
// registers of 1 to 32 lanes, which meet in shuffles. Otherwise (NCHW) a thread holds V neighbouring pixels of some
// channels, and the threads of the same pixels meet in shared memory. Pixels of more channels than that holds are gone
// over twice, the second time in L1 or L2.
#pragma once

#include "reduce.cuh"

namespace gankern::pixel_norm {

enum Pass { FORWARD, BACKWARD, SECOND };

template <Pass P>
constexpr int INPUTS = P + 1;
template <Pass P>
constexpr int SUMS = P == SECOND ? 4 : P + 1;
template <Pass P>
constexpr int OUTPUTS = P == SECOND ? 2 : 1;

// Vectors of each tensor that a thread holds: of rows, and of columns.
constexpr int ROW_VECTORS = 4;
template <int V, Pass P>
constexpr int COLUMN_VECTORS = V == 1 ? (P == FORWARD ? 16 : 8) : (P == SECOND ? 4 : 8);

template <typename T>
struct Tensors {
    View<const T> in[3];  // x, dy, v: as many as the pass has
    View<T> out[2];       // y; dx; the gradients of <dx, v> with respect to dy and x
};

// 1/k and eps.
template <typename A>
struct Constants {
    A inverse, eps;
};

// -- a pixel ----------------------------------------------------------------------------------------------------------

template <Pass P, typename A>
GANKERN_DEVICE void add(A (&s)[SUMS<P>], const A (&t)[INPUTS<P>]) {
    s[0] += t[0] * t[0];
    if constexpr (P >= BACKWARD) s[1] += t[0] * t[1];
    if constexpr (P == SECOND) s[2] += t[0] * t[2], s[3] += t[1] * t[2];
}

// The sums over a pixel's channels become what `normalise` multiplies with; with m = mean(x·dy), a = mean(x·v) and
// q = mean(dy·v) these are r, r²·m, r²·a and r²·(3·r²·a·m − q).
template <Pass P, typename A>
GANKERN_DEVICE void to_coefficients(A (&s)[SUMS<P>], const Constants<A>& c) {
    const A r = A(1) / std::sqrt(s[0] * c.inverse + c.eps), r2 = r * r;
    if constexpr (P == SECOND) {
        const A m = s[1] * c.inverse, a = s[2] * c.inverse, q = s[3] * c.inverse;
        s[2] = r2 * a, s[3] = r2 * (A(3) * r2 * a * m - q);
    }
    if constexpr (P >= BACKWARD) s[1] *= c.inverse * r2;
    s[0] = r;
}

template <Pass P, typename A>
GANKERN_DEVICE void normalise(A (&out)[OUTPUTS<P>], const A (&t)[INPUTS<P>], const A (&s)[SUMS<P>]) {
    if constexpr (P == FORWARD) out[0] = s[0] * t[0];
    if constexpr (P == BACKWARD) out[0] = s[0] * (t[1] - s[1] * t[0]);
    if constexpr (P == SECOND) {
        out[0] = s[0] * (t[2] - s[2] * t[0]);
        out[1] = s[0] * (s[3] * t[0] - s[1] * t[2] - s[2] * t[1]);
    }
}

// A vector of every tensor, of N pixels: 1, or as many as lanes.
template <Pass P, typename T, int V>
GANKERN_DEVICE void load_all(Packed<T, V> (&to)[INPUTS<P>], const Tensors<T>& t, int64_t at) {
#pragma unroll
    for (int k = 0; k < INPUTS<P>; k++) to[k] = load<V>(t.in[k], at);
}

template <Pass P, int N, typename T, int V>
GANKERN_DEVICE void add_all(Acc<T> (&s)[N][SUMS<P>], const Packed<T, V> (&t)[INPUTS<P>]) {
#pragma unroll
    for (int i = 0; i < V; i++) {
        Acc<T> one[INPUTS<P>];
#pragma unroll
        for (int k = 0; k < INPUTS<P>; k++) one[k] = widen(t[k].lane[i]);
        add<P>(s[i % N], one);
    }
}

// The compiler unpacks again what it would else keep unpacked, in twice the registers.
template <typename T, int V, int N>
GANKERN_DEVICE void forget(Packed<T, V> (&t)[N]) {
    if constexpr (sizeof(T) * V == VECTOR_BYTES) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            uint32_t words[4];
            memcpy(words, t + k, sizeof(words));
#pragma unroll
            for (int i = 0; i < 4; i++) asm volatile("" : "+r"(words[i]));
            memcpy(t + k, words, sizeof(words));
        }
    }
}

template <Pass P, int N, typename T, int V>
GANKERN_DEVICE void store_all(const Tensors<T>& to, int64_t at, Packed<T, V> (&t)[INPUTS<P>],
                              const Acc<T> (&s)[N][SUMS<P>]) {
    forget(t);
    Acc<T> out[OUTPUTS<P>][V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        Acc<T> one[INPUTS<P>], result[OUTPUTS<P>];
#pragma unroll
        for (int k = 0; k < INPUTS<P>; k++) one[k] = widen(t[k].lane[i]);
        normalise<P>(result, one, s[i % N]);
#pragma unroll
        for (int k = 0; k < OUTPUTS<P>; k++) out[k][i] = result[k];
    }
#pragma unroll
    for (int k = 0; k < OUTPUTS<P>; k++) store(to.out[k], at, pack<T, V>(out[k]));
}

// -- channels that are neighbours -------------------------------------------------------------------------------------

struct Rows {
    int64_t rows;
    int vectors, lanes;  // of a row; that hold it, a power of two
};

// S vectors of a row a lane.
template <typename T, int V, int S, Pass P>
GANKERN_KERNEL(THREADS, 3) over_rows(Tensors<T> t, Rows p, Constants<Acc<T>> c) {
    constexpr int U = ROW_VECTORS / S;
    const int lane = threadIdx.x % unsigned(p.lanes), apart = THREADS / unsigned(p.lanes);
    const int64_t first = int64_t(blockIdx.x) * U * apart + threadIdx.x / unsigned(p.lanes);
    const auto there = [&](int u, int s) { return first + u * apart < p.rows && lane + s * p.lanes < p.vectors; };
    const auto at = [&](int u, int s) { return ((first + u * apart) * p.vectors + lane + s * p.lanes) * V; };
    Packed<T, V> held[U][S][INPUTS<P>];
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int s = 0; s < S; s++)
            if (there(u, s)) load_all<P>(held[u][s], t, at(u, s));
#pragma unroll
    for (int u = 0; u < U; u++) {
        Acc<T> sums[1][SUMS<P>] = {};
#pragma unroll
        for (int s = 0; s < S; s++)
            if (there(u, s)) add_all<P>(sums, held[u][s]);
        for (int far = p.lanes / 2; far > 0; far /= 2)
#pragma unroll
            for (int k = 0; k < SUMS<P>; k++) sums[0][k] += __shfl_xor_sync(~0u, sums[0][k], far);
        to_coefficients<P>(sums[0], c);
#pragma unroll
        for (int s = 0; s < S; s++)
            if (there(u, s)) store_all<P>(t, at(u, s), held[u][s], sums);
    }
}

// -- pixels that are neighbours ---------------------------------------------------------------------------------------

struct Columns {
    int64_t image, pitch;     // elements of k planes, and of one
    unsigned columns, plane;  // of V pixels: in all, and in a plane
    int k, places, ranks;     // channels; a block's columns, and the threads of each
};

// A thread's column of V pixels, and its channels in it: rank, rank + ranks, ... below `end`.
struct Column {
    int64_t start;
    int rank, end;

    GANKERN_DEVICE Column(const Columns& p, int vector) {
        const unsigned column = blockIdx.x * p.places + threadIdx.x % unsigned(p.places);
        rank = threadIdx.x / unsigned(p.places);
        end = rank < p.ranks && column < p.columns ? p.k : 0;
        start = column / p.plane * p.image + int64_t(column % p.plane) * vector;
    }
};

// Sums over the threads of a column, for each of them.
template <int N, typename A>
GANKERN_DEVICE void sum_over_column(A (&s)[N], int rank, const Columns& p) {
    if (p.ranks == 1) return;
    const Shared<A> memory = shared_memory<A>(0, N * THREADS);
    sum_over_ranks<N>(s, memory, rank, p.ranks, p.places);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) s[i] = *memory.read(i * THREADS + threadIdx.x % unsigned(p.places), 1);
}

template <typename T, int V, Pass P>
GANKERN_KERNEL(THREADS, 2) over_columns(Tensors<T> t, Columns p, Constants<Acc<T>> c) {
    using A = Acc<T>;
    constexpr int R = COLUMN_VECTORS<V, P>;
    const Column column(p, V);
    const auto there = [&](int j) { return column.rank + j * p.ranks < column.end; };
    const auto at = [&](int j) { return column.start + (column.rank + j * p.ranks) * p.pitch; };
    Packed<T, V> held[R][INPUTS<P>];
#pragma unroll
    for (int j = 0; j < R; j++)
        if (there(j)) load_all<P>(held[j], t, at(j));
    A sums[V][SUMS<P>] = {};
#pragma unroll
    for (int j = 0; j < R; j++)
        if (there(j)) add_all<P>(sums, held[j]);
    sum_over_column(reinterpret_cast<A(&)[V * SUMS<P>]>(sums), column.rank, p);
#pragma unroll
    for (int i = 0; i < V; i++) to_coefficients<P>(sums[i], c);
#pragma unroll
    for (int j = 0; j < R; j++)
        if (there(j)) store_all<P>(t, at(j), held[j], sums);
}

// Twice along any number of channels, of pixels that are neighbours or not.
template <typename T, Pass P>
GANKERN_KERNEL(THREADS, 4) over_long_columns(Tensors<T> t, Columns p, Constants<Acc<T>> c) {
    const Column column(p, 1);
    Packed<T, 1> one[INPUTS<P>];
    Acc<T> sums[1][SUMS<P>] = {};
#pragma unroll 4
    for (int j = column.rank; j < column.end; j += p.ranks) {
        load_all<P>(one, t, column.start + j * p.pitch);
        add_all<P>(sums, one);
    }
    sum_over_column(sums[0], column.rank, p);
    to_coefficients<P>(sums[0], c);
#pragma unroll 4
    for (int j = column.rank; j < column.end; j += p.ranks) {
        load_all<P>(one, t, column.start + j * p.pitch);
        store_all<P>(t, column.start + j * p.pitch, one, sums);
    }
}

// -- launches ---------------------------------------------------------------------------------------------------------

inline dim3 blocks_for(int64_t work, int64_t each) {
    if (ceil_div(work, each) > INT32_MAX) throw std::runtime_error("gankern: more than 2^31 blocks");
    return dim3(static_cast<unsigned>(ceil_div(work, each)));
}

template <Pass P, typename T, int V>
void launch_columns(const Tensors<T>& t, int64_t outer, int64_t k, int64_t inner, const Constants<Acc<T>>& c,
                    void* stream) {
    const bool fits = k <= THREADS * COLUMN_VECTORS<V, P>;
    const int vector = fits ? V : 1;
    const int64_t columns = outer * inner / vector;
    if (k > INT32_MAX - THREADS || columns > UINT32_MAX - THREADS)
        throw std::runtime_error("gankern: more than 2^31 channels or 2^32 pixels");
    Columns p;
    p.image = k * inner, p.pitch = inner, p.k = static_cast<int>(k);
    p.columns = static_cast<unsigned>(columns), p.plane = static_cast<unsigned>(inner / vector);
    p.ranks = fits ? static_cast<int>(ceil_div(k, COLUMN_VECTORS<V, P>)) : inner > 1 ? THREADS / 32 : THREADS;
    p.places = THREADS / p.ranks;
    const size_t shared = p.ranks > 1 ? sizeof(Acc<T>) * SUMS<P> * vector * THREADS : 0;
    const auto kernel = fits ? over_columns<T, V, P> : over_long_columns<T, P>;
    launch(kernel, {blocks_for(columns, p.places), THREADS, shared, stream}, t, p, c);
}

// V: how many elements along the dimension that lies innermost are taken at once.
template <Pass P, typename T, int V>
void launch_pass(const Tensors<T>& t, int64_t outer, int64_t k, int64_t inner, double eps, void* stream) {
    constexpr int MOST_LANES = 32, SHORT = 16;
    const Constants<Acc<T>> c = {Acc<T>(1) / Acc<T>(k), Acc<T>(eps)};
    if (inner > 1) return launch_columns<P, T, V>(t, outer, k, inner, c, stream);
    const int64_t vectors = k / V;
    if (vectors > MOST_LANES * ROW_VECTORS) return launch_columns<P, T, 1>(t, outer, k, 1, c, stream);
    const bool is_short = V > 1 && vectors <= SHORT;
    Rows p = {outer, static_cast<int>(vectors), 1};
    while (p.lanes * (is_short ? 1 : ROW_VECTORS) < vectors) p.lanes *= 2;
    const int each = THREADS / p.lanes * (is_short ? ROW_VECTORS : 1);
    const auto kernel = is_short ? over_rows<T, V, V == 1 ? ROW_VECTORS : 1, P> : over_rows<T, V, ROW_VECTORS, P>;
    launch(kernel, {blocks_for(outer, each), THREADS, 0, stream}, t, p, c);
}

}  // namespace gankern::pixel_norm
