// A layer's tensors as its kernels take them.
#pragma once

#include "binding.h"
#include "layer.cuh"

namespace gankern::layer {

template <typename T>
Operands<T> operands(const MaybeTensor& d, const MaybeTensor& noise, const MaybeTensor& strength, const MaybeTensor& bias,
                     const MaybeTensor& styles, int64_t noise_step, const Activation<Acc<T>>& f) {
    using A = Acc<T>;
    return {reading<A>(d), reading<A>(noise), reading<A>(strength), reading<A>(styles), reading<T>(bias), noise_step, f};
}

}  // namespace gankern::layer
