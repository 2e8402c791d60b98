// Sums in a fixed order: over the threads of a block, and over the partial sums that blocks leave.
#pragma once

#include "lines.cuh"

namespace gankern {

// Adds up `s` over the threads of a block that differ in `rank` alone (0 <= rank < ranks; `distance` between their thread
// numbers); the thread of rank 0 has the result. Every thread of the block calls it; `memory` holds N · THREADS numbers.
template <int N, typename A>
GANKERN_DEVICE void sum_over_ranks(A (&s)[N], Shared<A> memory, int rank, int ranks, int distance) {
    const int thread = threadIdx.x;
    __syncthreads();  // an earlier sum may still be read
#pragma unroll
    for (int i = 0; i < N; i++) *memory.write(i * THREADS + thread, 1) = s[i];
    for (int many = ranks; many > 1;) {
        const int half = (many + 1) / 2;
        __syncthreads();
        if (rank + half < many) {
#pragma unroll
            for (int i = 0; i < N; i++) {
                s[i] += *memory.read(i * THREADS + thread + half * distance, 1);
                *memory.write(i * THREADS + thread, 1) = s[i];
            }
        }
        many = half;
    }
}

// How many partial sums of one quantity there are: one for each channel or plane, from each block on its line.
template <int V, bool COLUMNS>
__host__ __device__ constexpr int64_t partial_sums(const Lines& p) {
    return int64_t(p.images) * p.splits * p.lines * (COLUMNS ? V : 1);
}

// A line's sums over its thread's steps -> partial[part, channel or plane] of the quantity `which`. Along columns each
// of the V lanes is a channel; along rows they are pixels of one plane.
template <int V, bool COLUMNS, typename A>
GANKERN_DEVICE void store_line_sums(const A (&sums)[V], const Line<V, COLUMNS>& line, const Lines& p, View<A> partial,
                                    int which = 0) {
    constexpr int N = COLUMNS ? V : 1;
    A s[N];
    if constexpr (COLUMNS) {
#pragma unroll
        for (int i = 0; i < V; i++) s[i] = sums[i];
    } else {
        s[0] = sums[0];
#pragma unroll
        for (int i = 1; i < V; i++) s[0] += sums[i];
    }
    sum_over_ranks<N>(s, shared_memory<A>(0, N * THREADS), line.rank, p.along, COLUMNS ? p.across : 1);
    if (!line.exists || line.rank != 0) return;
    const int64_t part = line.image * p.splits + line.split;
    const int64_t at = which * partial_sums<V, COLUMNS>(p) + (part * p.lines + line.line) * N;
#pragma unroll
    for (int i = 0; i < N; i++) *partial.write(at + i, 1) = s[i];
}

template <typename A, int V, bool COLUMNS>
constexpr size_t line_sums_bytes() {
    return sizeof(A) * (COLUMNS ? V : 1) * THREADS;
}

constexpr int SUM_COLUMNS = 8, SUM_RANKS = THREADS / SUM_COLUMNS;  // 8 numbers are a sector

// out[o, i] = Σ_k partial[o, k, i] of partial [outer, many, inner].
template <typename T, typename A>
GANKERN_KERNEL(THREADS, 2) sum_parts(View<const A> partial, View<T> out, int64_t many, int64_t inner) {
    const int column = threadIdx.x % SUM_COLUMNS, rank = threadIdx.x / SUM_COLUMNS;
    const unsigned across = static_cast<unsigned>((inner + SUM_COLUMNS - 1) / SUM_COLUMNS);
    const int64_t i = int64_t(blockIdx.x % across) * SUM_COLUMNS + column, o = blockIdx.x / across;
    A s[1] = {A(0)};
    if (i < inner)
        for (int64_t k = rank; k < many; k += SUM_RANKS) s[0] += *partial.read((o * many + k) * inner + i, 1);
    sum_over_ranks<1>(s, shared_memory<A>(0, THREADS), rank, SUM_RANKS, SUM_COLUMNS);
    if (rank == 0 && i < inner) *out.write(o * inner + i, 1) = narrow<T>(s[0]);
}

template <typename T, typename A>
void launch_sum_parts(View<const A> partial, View<T> out, int64_t outer, int64_t many, int64_t inner, void* stream) {
    const int64_t blocks = ceil_div(inner, SUM_COLUMNS) * outer;
    if (blocks > INT32_MAX) throw std::runtime_error("gankern: more than 2^31 sums");
    launch(sum_parts<T, A>, {dim3(static_cast<unsigned>(blocks)), THREADS, sizeof(A) * THREADS, stream}, partial, out, many,
           inner);
}

}  // namespace gankern
