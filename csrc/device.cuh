// The ground under every kernel: views of memory, 16-byte vectors, launches. Plain CUDA under nvcc; with -DGANKERN_HOST
// g++ compiles the same kernels through host/emulate.h, which checks every access.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifdef GANKERN_HOST
#include "host/emulate.h"
#else
#include "cuda.h"
#endif

namespace gankern {

constexpr int VECTOR_BYTES = 16;

// What a kernel computes in: float, and double for double (which only the host build instantiates).
template <typename T>
using Acc = std::conditional_t<std::is_same_v<std::remove_const_t<T>, double>, double, float>;

template <typename T>
constexpr int VECTOR = VECTOR_BYTES / sizeof(T);

template <typename T, int V>
struct alignas(sizeof(T) * V) Packed {
    T lane[V];
};

template <typename T, int V>
GANKERN_DEVICE void unpack(const Packed<T, V>& from, Acc<T> (&to)[V]) {
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = widen(from.lane[i]);
}

template <typename T, int V>
GANKERN_DEVICE Packed<T, V> pack(const Acc<T> (&from)[V]) {
    Packed<T, V> to;
    if constexpr (V % 2 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 2) narrow_pair(from[i], from[i + 1], to.lane + i);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) to.lane[i] = narrow<T>(from[i]);
    }
    return to;
}

// V consecutive elements from element i on, in one access; i is a multiple of V.
template <int V, typename T>
GANKERN_DEVICE Packed<T, V> load(View<const T> from, int64_t i) {
    return load_packed<Packed<T, V>>(from.read(i, V));
}

template <typename T, int V>
GANKERN_DEVICE void store(View<T> to, int64_t i, const Packed<T, V>& values) {
    store_packed(to.write(i, V), values);
}

// The same in shared memory.
template <int V, typename T>
GANKERN_DEVICE Packed<T, V> load(Shared<T> from, int i) {
    return *reinterpret_cast<const Packed<T, V>*>(from.read(i, V));
}

template <typename T, int V>
GANKERN_DEVICE void store(Shared<T> to, int i, const Packed<T, V>& values) {
    *reinterpret_cast<Packed<T, V>*>(to.write(i, V)) = values;
}

template <typename T>
GANKERN_DEVICE Acc<T> value(View<const T> from, int64_t i) {
    return widen(*from.read(i, 1));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace gankern
