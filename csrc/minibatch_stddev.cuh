// minibatch_stddev: x and, appended, F channels that hold at every pixel s = mean over a part's items of
// σ = sqrt(var over a group's samples + eps); its backward dx = dy + t·(x − μ)/(G·items·σ), t the sum of dy's map over
// the group. Bytes: x and y forward; dy, x and dx backward (x twice in groups of more than 4, then from L1 or L2).
//
// Sample g·M + m is member g of group m of M. An item is one channel of a pixel, of the C/F channels of a part; a
// thread takes V neighbouring items of every member. Where one block goes over a group in two steps it also writes the
// group's map, so forward is one launch, and else two; backward is one where the group's map is small.
#pragma once

#include "reduce.cuh"

namespace gankern::minibatch_stddev {

constexpr int WARP = 32, MOST_THREADS = 1024;
constexpr int BATCH = 4;         // samples whose loads are under way at once
constexpr int STEPS_ALONE = 2;   // of a block, to its group's end
constexpr int WAVES = 4;         // blocks a multiprocessor, where a group has several
constexpr int SMALL_MAP = 1024;  // numbers of a group's map that every block adds up by itself

// Vectors of items under way at once.
template <int V>
constexpr int UNROLL = V > 1 ? 1 : 4;

struct Sizes {
    int groups, group, parts;  // M, G, F
    unsigned channels, items;  // of a part; in it
    unsigned pixels;
    bool columns;  // channels_last

    // Where a sample begins in x, whose channels are the parts', and in y, which has one more a part.
    GANKERN_DEVICE int64_t in_x(int m, int g) const { return (int64_t(g) * groups + m) * parts * items; }
    GANKERN_DEVICE int64_t in_y(int m, int g) const {
        return (int64_t(g) * groups + m) * parts * (int64_t(items) + pixels);
    }

    // Where item i of part f stands in a sample of x and of y.
    GANKERN_DEVICE void place(int f, unsigned i, unsigned& at_x, unsigned& at_y) const {
        at_x = at_y = f * items + i;
        if (!columns) return;
        const unsigned pixel = i / channels, channel = f * channels + i % channels;
        at_x = pixel * parts * channels + channel;
        at_y = pixel * parts * (channels + 1) + channel;
    }

    // Where pixel p of part f's map stands in a sample of y.
    GANKERN_DEVICE unsigned in_map(int f, unsigned p) const {
        const unsigned channel = parts * channels + f;
        return columns ? p * parts * (channels + 1) + channel : channel * pixels + p;
    }
};

// Sums over the threads of a block, a multiple of 32, for each of them.
template <typename A>
GANKERN_DEVICE A sum_over_block(A s) {
    const Shared<A> memory = shared_memory<A>(0, MOST_THREADS / WARP);
#pragma unroll
    for (int far = WARP / 2; far > 0; far /= 2) s += __shfl_xor_sync(~0u, s, far);
    if (threadIdx.x % WARP == 0) *memory.write(threadIdx.x / WARP, 1) = s;
    __syncthreads();
    s = A(0);
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / WARP; warp++) s += *memory.read(warp, 1);
    return s;
}

// Mean and sum of squared deviations after one more, the n-th, value.
template <typename A, int V>
GANKERN_DEVICE void see(A (&mean)[V], A (&squares)[V], const A (&value)[V], int n) {
    const A share = A(1) / A(n);
#pragma unroll
    for (int i = 0; i < V; i++) {
        const A off = value[i] - mean[i];
        mean[i] += off * share;
        squares[i] += off * (value[i] - mean[i]);
    }
}

// The map of group m and part f, by `count` threads of which this is number `thread`.
template <typename T>
GANKERN_DEVICE void fill_map(View<T> y, Acc<T> s, int m, int f, const Sizes& p, unsigned thread, unsigned count) {
    const T value = narrow<T>(s);
    for (unsigned i = thread; i < p.group * p.pixels; i += count)
        *y.write(p.in_y(m, i / p.pixels) + p.in_map(f, i % p.pixels), 1) = value;
}

template <typename T>
GANKERN_DEVICE Acc<T> sum_of_map(View<const T> dy, int m, int f, const Sizes& p) {
    Acc<T> s = 0;
    for (unsigned i = threadIdx.x; i < p.group * p.pixels; i += blockDim.x)
        s += value(dy, p.in_y(m, i / p.pixels) + p.in_map(f, i % p.pixels));
    return sum_over_block(s);
}

// -- kernels: blocks over groups, their parts, and `splits` of those --------------------------------------------------

template <typename T, int V>
GANKERN_KERNEL(MOST_THREADS, 1)
forward(View<const T> x, View<T> y, View<Acc<T>> partial, Sizes p, int splits, Acc<T> eps) {
    using A = Acc<T>;
    constexpr int U = UNROLL<V>;
    const unsigned block = blockIdx.x / splits, split = blockIdx.x % splits, stride = splits * blockDim.x;
    const int m = block / p.parts, f = block % p.parts;
    A sum = 0;
    for (unsigned k = split * blockDim.x + threadIdx.x; k < p.items / V; k += U * stride) {
        unsigned at_x[U], at_y[U];
        A mean[U][V] = {}, squares[U][V] = {};
#pragma unroll
        for (int u = 0; u < U; u++) p.place(f, (k + u * stride) * V, at_x[u], at_y[u]);
        const auto there = [&](int u) { return u == 0 || k + u * stride < p.items / V; };
        for (int first = 0; first < p.group; first += BATCH) {
            Packed<T, V> in[BATCH][U];
#pragma unroll
            for (int j = 0; j < BATCH; j++)
#pragma unroll
                for (int u = 0; u < U; u++)
                    if (first + j < p.group && there(u)) in[j][u] = load<V>(x, p.in_x(m, first + j) + at_x[u]);
#pragma unroll
            for (int j = 0; j < BATCH; j++)
#pragma unroll
                for (int u = 0; u < U; u++) {
                    if (first + j >= p.group || !there(u)) continue;
                    store(y, p.in_y(m, first + j) + at_y[u], in[j][u]);
                    A v[V];
                    unpack(in[j][u], v);
                    see(mean[u], squares[u], v, first + j + 1);
                }
        }
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < V; i++)
                if (there(u)) sum += std::sqrt(squares[u][i] / A(p.group) + eps);
    }
    sum = sum_over_block(sum);
    if (splits == 1) fill_map(y, sum / A(p.items), m, f, p, threadIdx.x, blockDim.x);
    else if (threadIdx.x == 0) *partial.write(blockIdx.x, 1) = sum;
}

// partial [groups · parts, many] -> the maps, each by `splits` blocks.
template <typename T>
GANKERN_KERNEL(THREADS, 4) fill(View<const Acc<T>> partial, View<T> y, Sizes p, int many, int splits) {
    const unsigned block = blockIdx.x / splits, split = blockIdx.x % splits;
    Acc<T> s = 0;
    for (int k = threadIdx.x; k < many; k += THREADS) s += *partial.read(int64_t(block) * many + k, 1);
    s = sum_over_block(s) / Acc<T>(p.items);
    fill_map(y, s, block / p.parts, block % p.parts, p, split * THREADS + threadIdx.x, splits * THREADS);
}

// t of every group and part.
template <typename T>
GANKERN_KERNEL(MOST_THREADS, 1) sum_maps(View<const T> dy, View<Acc<T>> sums, Sizes p) {
    const Acc<T> t = sum_of_map(dy, blockIdx.x / p.parts, blockIdx.x % p.parts, p);
    if (threadIdx.x == 0) *sums.write(blockIdx.x, 1) = t;
}

// t from `sums`, or added up here where there are none.
template <typename T, int V>
GANKERN_KERNEL(THREADS, 2)
backward(View<const T> dy, View<const T> x, View<T> dx, View<const Acc<T>> sums, Sizes p, int splits, Acc<T> eps) {
    using A = Acc<T>;
    const unsigned block = blockIdx.x / splits, k = blockIdx.x % splits * THREADS + threadIdx.x;
    const int m = block / p.parts, f = block % p.parts, group = k < p.items / V ? p.group : 0;
    unsigned at_x, at_y;
    p.place(f, k * V, at_x, at_y);
    Packed<T, V> in[BATCH], grad[BATCH];
    const auto read = [&](View<const T> from, Packed<T, V>(&to)[BATCH], int first, bool of_x) {
#pragma unroll
        for (int j = 0; j < BATCH; j++)
            if (first + j < group)
                to[j] = load<V>(from, of_x ? p.in_x(m, first + j) + at_x : p.in_y(m, first + j) + at_y);
    };
    read(x, in, 0, true);
    read(dy, grad, 0, false);
    const A t = sums ? *sums.read(block, 1) : sum_of_map(dy, m, f, p);
    A mean[V] = {}, squares[V] = {}, slope[V];
    for (int first = 0; first < group; first += BATCH) {
        if (first > 0) read(x, in, first, true);
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            if (first + j >= group) continue;
            A v[V];
            unpack(in[j], v);
            see(mean, squares, v, first + j + 1);
        }
    }
    const A share = t / (A(p.items) * A(p.group));
#pragma unroll
    for (int i = 0; i < V; i++) slope[i] = share / std::sqrt(squares[i] / A(p.group) + eps);
    for (int first = 0; first < group; first += BATCH) {
        if (group > BATCH) read(x, in, first, true);
        if (first > 0) read(dy, grad, first, false);
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            if (first + j >= group) continue;
            A v[V], d[V];
            unpack(in[j], v), unpack(grad[j], d);
#pragma unroll
            for (int i = 0; i < V; i++) d[i] += slope[i] * (v[i] - mean[i]);
            store(dx, p.in_x(m, first + j) + at_x, pack<T, V>(d));
        }
    }
}

// -- launches ---------------------------------------------------------------------------------------------------------

inline Sizes sizes(int64_t n, int64_t channels, int64_t pixels, int64_t group, int64_t parts, bool columns) {
    const int64_t items = channels / parts * pixels;
    if ((channels + parts) * pixels > INT32_MAX || group * pixels > INT32_MAX || n > INT32_MAX)
        throw std::runtime_error("gankern: more than 2^31 numbers in a sample or a group's map");
    Sizes p;
    p.groups = static_cast<int>(n / group), p.group = static_cast<int>(group), p.parts = static_cast<int>(parts);
    p.channels = static_cast<unsigned>(channels / parts), p.items = static_cast<unsigned>(items);
    p.pixels = static_cast<unsigned>(pixels), p.columns = columns;
    return p;
}

inline dim3 blocks_for(const Sizes& p, int64_t splits) {
    const int64_t blocks = int64_t(p.groups) * p.parts * splits;
    if (blocks > INT32_MAX) throw std::runtime_error("gankern: more than 2^31 blocks");
    return dim3(static_cast<unsigned>(blocks));
}

template <typename A>
constexpr size_t BLOCK_SUM_BYTES = sizeof(A) * MOST_THREADS / WARP;

// A block's threads and how many blocks a group's part has: 1 where it also fills the map.
struct Plan {
    int threads, splits;
};

template <int V>
Plan plan_forward(const Sizes& p) {
    const int64_t steps = ceil_div(p.items / V, UNROLL<V>), parts = int64_t(p.groups) * p.parts;
    if (steps * ceil_div(p.group, BATCH) <= STEPS_ALONE * MOST_THREADS) {
        const int64_t threads = std::max<int64_t>(1, ceil_div(steps, WARP)) * WARP;
        return {static_cast<int>(std::min<int64_t>(threads, MOST_THREADS)), 1};
    }
    const int64_t enough = std::max<int64_t>(2, ceil_div(int64_t(multiprocessors()) * WAVES, parts));
    return {THREADS, static_cast<int>(std::min(enough, ceil_div(steps, THREADS)))};
}

template <typename T, int V>
void launch_forward(View<const T> x, View<T> y, View<Acc<T>> partial, const Sizes& p, const Plan& plan, double eps,
                    void* stream) {
    const Grid grid = {blocks_for(p, plan.splits), plan.threads, BLOCK_SUM_BYTES<Acc<T>>, stream};
    launch(forward<T, V>, grid, x, y, partial, p, plan.splits, eps);
}

template <typename T>
void launch_fill(View<const Acc<T>> partial, View<T> y, const Sizes& p, const Plan& plan, void* stream) {
    const int64_t numbers = int64_t(p.group) * p.pixels;
    const int splits = static_cast<int>(std::min<int64_t>(ceil_div(numbers, 4 * THREADS), multiprocessors()));
    const Grid grid = {blocks_for(p, splits), THREADS, BLOCK_SUM_BYTES<Acc<T>>, stream};
    launch(fill<T>, grid, partial, y, p, plan.splits, splits);
}

inline bool small_map(const Sizes& p) { return p.group * p.pixels <= SMALL_MAP; }

template <typename T>
void launch_sum_maps(View<const T> dy, View<Acc<T>> sums, const Sizes& p, void* stream) {
    launch(sum_maps<T>, {blocks_for(p, 1), MOST_THREADS, BLOCK_SUM_BYTES<Acc<T>>, stream}, dy, sums, p);
}

template <typename T, int V>
void launch_backward(View<const T> dy, View<const T> x, View<T> dx, View<const Acc<T>> sums, const Sizes& p, double eps,
                     void* stream) {
    const int splits = static_cast<int>(ceil_div(p.items / V, THREADS));
    const Grid grid = {blocks_for(p, splits), THREADS, BLOCK_SUM_BYTES<Acc<T>>, stream};
    launch(backward<T, V>, grid, dy, x, dx, sums, p, splits, eps);
}

}  // namespace gankern::minibatch_stddev
