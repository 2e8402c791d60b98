// device.cuh's ground on a GPU: plain pointers and the CUDA runtime.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>

#define GANKERN_DEVICE __device__ __forceinline__
// Threads of a block and, where given, blocks that must fit on a multiprocessor at once: without that number the compiler
// may spill a few registers to make room for one more.
#define GANKERN_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)

namespace gankern {

using half = __half;
using bfloat16 = __nv_bfloat16;

template <typename T>
struct View {
    T* data;
    __device__ explicit operator bool() const { return data != nullptr; }
    __device__ const T* read(int64_t i, int) const { return data + i; }
    __device__ T* write(int64_t i, int) const { return data + i; }
};

template <typename T>
struct Shared {
    T* data;
    __device__ const T* read(int i, int) const { return data + i; }
    __device__ T* write(int i, int) const { return data + i; }
};

// `count` elements of the block's shared memory, from a byte offset (a multiple of 16) on.
template <typename T>
GANKERN_DEVICE Shared<T> shared_memory(int offset, int) {
    extern __shared__ __align__(16) unsigned char gankern_shared[];
    return {reinterpret_cast<T*>(gankern_shared + offset)};
}

template <typename P>
GANKERN_DEVICE P load_packed(const void* from) {
    if constexpr (sizeof(P) == 16) {
        const uint4 bits = __ldg(static_cast<const uint4*>(from));
        return reinterpret_cast<const P&>(bits);
    } else {
        return *static_cast<const P*>(from);
    }
}

// In one access, in global memory: the compiler would store a structure field by field.
template <typename P>
GANKERN_DEVICE void store_packed(void* to, const P& packed) {
    if constexpr (sizeof(P) == 16) {
        uint4 bits;
        memcpy(&bits, &packed, sizeof(bits));
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits.x),
                     "r"(bits.y), "r"(bits.z), "r"(bits.w)
                     : "memory");
    } else {
        *static_cast<P*>(to) = packed;
    }
}

__host__ __device__ inline float widen(float x) { return x; }
__host__ __device__ inline float widen(half x) { return __half2float(x); }
// As bits: sm_90's own instruction takes the two halves of a register apart first, into a register each.
__host__ __device__ inline float widen(bfloat16 x) {
    const __nv_bfloat16_raw raw = x;
    const unsigned bits = static_cast<unsigned>(raw.x) << 16;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

template <typename T>
__host__ __device__ inline T narrow(float x) {
    if constexpr (std::is_same_v<T, half>) return __float2half_rn(x);
    else if constexpr (std::is_same_v<T, bfloat16>) return __float2bfloat16_rn(x);
    else return x;
}

GANKERN_DEVICE void narrow_pair(float a, float b, float* to) { to[0] = a, to[1] = b; }
GANKERN_DEVICE void narrow_pair(float a, float b, half* to) { *reinterpret_cast<__half2*>(to) = __floats2half2_rn(a, b); }
GANKERN_DEVICE void narrow_pair(float a, float b, bfloat16* to) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
}

inline void check(cudaError_t status, const char* doing) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would be blamed for it
    throw std::runtime_error(std::string("gankern: ") + doing + ": " + cudaGetErrorString(status));
}

struct Grid {
    dim3 blocks;
    int threads;
    size_t shared;
    void* stream;
};

template <typename... P, typename... A>
void launch(void (*kernel)(P...), const Grid& grid, A... args) {
    if (grid.shared > 48 * 1024) {  // more has to be asked for
        const int bytes = static_cast<int>(grid.shared);
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
    }
    kernel<<<grid.blocks, grid.threads, grid.shared, static_cast<cudaStream_t>(grid.stream)>>>(P(args)...);
    check(cudaGetLastError(), "kernel launch");
}

inline int multiprocessors() {
    constexpr int MOST = 64;
    static int known[MOST];  // a race writes the same number twice
    int device = 0;
    check(cudaGetDevice(&device), "current device");
    if (device >= MOST || known[device] == 0) {
        int count = 0;
        check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "device properties");
        if (device >= MOST) return count;
        known[device] = count;
    }
    return known[device];
}

}  // namespace gankern
