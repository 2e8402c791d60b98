// float16 and bfloat16 on a CPU, as bits, rounding as a GPU does.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace gankern {

namespace emulate {

template <typename To, typename From>
To bits(From from) {
    To to;
    static_assert(sizeof(to) == sizeof(from));
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

// Rounds to nearest, ties to even.
inline uint16_t to_half(float x) {
    uint32_t u = bits<uint32_t>(x);
    const uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (u >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    // subnormal: floats between 0.5 and 1 are as far apart as these halves, so the addition rounds
    if (u < 0x38800000u) return static_cast<uint16_t>(sign | (bits<uint32_t>(bits<float>(u) + 0.5f) - 0x3f000000u));
    return static_cast<uint16_t>(sign | (u + 0xc8000fffu + (u >> 13 & 1u)) >> 13);
}

inline float from_half(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, m = h & 0x7fffu;
    if (m >= 0x7c00u) return bits<float>(sign | 0x7f800000u | (m & 0x3ffu) << 13);
    if (m < 0x400u) return (sign ? -1.0f : 1.0f) * static_cast<float>(m) * 0x1p-24f;
    return bits<float>(sign | ((m << 13) + 0x38000000u));
}

inline uint16_t to_bfloat16(float x) {
    const uint32_t u = bits<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

}  // namespace emulate

struct half {
    uint16_t bits;
};
struct bfloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(half x) { return emulate::from_half(x.bits); }
inline float widen(bfloat16 x) { return emulate::bits<float>(static_cast<uint32_t>(x.bits) << 16); }

template <typename T, typename A>
T narrow(A x) {
    if constexpr (std::is_same_v<T, half>) return {emulate::to_half(x)};
    else if constexpr (std::is_same_v<T, bfloat16>) return {emulate::to_bfloat16(x)};
    else return x;
}

template <typename A, typename T>
void narrow_pair(A a, A b, T* to) {
    to[0] = narrow<T>(a), to[1] = narrow<T>(b);
}

}  // namespace gankern
