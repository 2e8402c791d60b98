// What the bindings share: tensors of torch's stable ABI as views, dispatch by type and layout, device and stream.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>

#include "device.cuh"

#ifdef GANKERN_HOST
#define GANKERN_BACKEND CPU
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define GANKERN_BACKEND CUDA
#endif

namespace gankern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// What the tensors' device needs while kernels are launched: to be the current one, and its stream.
#ifdef GANKERN_HOST
struct Device {
    explicit Device(const Tensor&) {}
    void* stream = nullptr;
};
#else
struct Device {
    explicit Device(const Tensor& t) : guard(t.get_device_index()) {
        STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0, "no current CUDA stream");
    }
    torch::stable::accelerator::DeviceGuard guard;
    void* stream = nullptr;
};
#endif

template <typename T>
View<const T> reading(const Tensor& t) {
#ifdef GANKERN_HOST
    return {static_cast<const T*>(t.data_ptr()), t.numel()};
#else
    return {static_cast<const T*>(t.data_ptr())};
#endif
}

template <typename T>
View<const T> reading(const MaybeTensor& t) {
    return t ? reading<T>(*t) : View<const T>{};
}

template <typename T>
View<T> writing(const Tensor& t) {
#ifdef GANKERN_HOST
    return {static_cast<T*>(t.data_ptr()), t.numel()};
#else
    return {static_cast<T*>(t.data_ptr())};
#endif
}

template <typename T>
View<T> writing(const MaybeTensor& t) {
    return t ? writing<T>(*t) : View<T>{};
}

inline const void* pointer(const Tensor& t) { return t.data_ptr(); }
inline const void* pointer(const MaybeTensor& t) { return t ? t->data_ptr() : nullptr; }

// A new tensor beside `like`, of its type or, for partial sums, of what sums of that type are held in.
inline Tensor sums_like(const Tensor& like, std::initializer_list<int64_t> size) {
    const auto type = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    return torch::stable::new_empty(like, {size.begin(), size.size()}, type);
}

// Calls fn(T()) with the element type of t.
template <typename F>
void with_type(const Tensor& t, F fn) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return fn(float());
        case ScalarType::Half: return fn(half());
        case ScalarType::BFloat16: return fn(bfloat16());
#ifdef GANKERN_HOST
        case ScalarType::Double: return fn(double());
#endif
        default: STD_TORCH_CHECK(false, "gankern's CUDA kernels take float16, bfloat16 and float32");
    }
}

// Whether every row of `cols` elements begins at a multiple of 16 bytes in all of these tensors.
inline bool aligned(const Tensor& like, int64_t cols, std::initializer_list<const void*> pointers) {
    if (cols * like.element_size() % VECTOR_BYTES) return false;
    for (const void* p : pointers)
        if (reinterpret_cast<uintptr_t>(p) % VECTOR_BYTES) return false;
    return true;
}

template <int N>
using Number = std::integral_constant<int, N>;

// Calls fn(Number<V>(), Number<COLUMNS>()): 16-byte vectors or single elements, and the two memory formats.
template <typename T, typename F>
void with_layout(bool vectors, bool columns, F fn) {
    if (vectors && columns) return fn(Number<VECTOR<T>>(), Number<1>());
    if (vectors) return fn(Number<VECTOR<T>>(), Number<0>());
    if (columns) return fn(Number<1>(), Number<1>());
    return fn(Number<1>(), Number<0>());
}

}  // namespace gankern
