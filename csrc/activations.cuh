// The activations and their derivatives: f(u); the slope f' in terms of a = f(u), or of u for swish.
#pragma once

#include "device.cuh"

namespace gankern {

// In the order of gankern.ops.bias_act's ACTIVATIONS.
enum Act { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH };

constexpr double SELU_ALPHA = 1.6732632423543772, SELU_SCALE = 1.0507009873554805;

// y = clamp(gain · act(u), ±clamp), clamp < 0 for none and as the tensor's type holds it.
template <typename A>
struct Activation {
    int act;
    A alpha, gain, clamp;

    bool two_lines() const { return act == LINEAR || act == LRELU; }
};

template <typename T>
Activation<Acc<T>> activation(int64_t act, double alpha, double gain, double clamp) {
    using A = Acc<T>;
    const A slope = act == LINEAR ? A(1) : A(alpha);
    return {static_cast<int>(act), slope, A(gain), A(widen(narrow<T>(A(clamp))))};
}

template <typename A>
GANKERN_DEVICE A sigmoid(A u) {
    const A t = std::exp(-std::abs(u));
    return (u >= A(0) ? A(1) : t) / (A(1) + t);
}

// TWO_LINES: known to be linear or leaky ReLU, whose slopes are 1 and alpha.
template <bool TWO_LINES, typename A>
GANKERN_DEVICE A activate(A u, const Activation<A>& f) {
    if constexpr (TWO_LINES) return u > A(0) ? u : u * f.alpha;
    switch (f.act) {
        case RELU: return u > A(0) ? u : (u <= A(0) ? A(0) : u);  // NaN stays
        case LRELU: return u > A(0) ? u : u * f.alpha;
        case TANH: return std::tanh(u);
        case SIGMOID: return sigmoid(u);
        case ELU: return u > A(0) ? u : std::expm1(u);
        case SELU: return A(SELU_SCALE) * (u > A(0) ? u : A(SELU_ALPHA) * std::expm1(u));
        case SOFTPLUS: return (u > A(0) ? u : A(0)) + std::log1p(std::exp(-std::abs(u)));
        case SWISH: return u * sigmoid(u);
        default: return u;
    }
}

template <bool TWO_LINES, typename A>
GANKERN_DEVICE A slope(A a, const Activation<A>& f) {
    if constexpr (TWO_LINES) return a > A(0) ? A(1) : f.alpha;
    switch (f.act) {
        case RELU: return a > A(0) ? A(1) : A(0);
        case LRELU: return a > A(0) ? A(1) : f.alpha;
        case TANH: return A(1) - a * a;
        case SIGMOID: return a * (A(1) - a);
        case ELU: return a >= A(0) ? A(1) : a + A(1);
        case SELU: return a >= A(0) ? A(SELU_SCALE) : a + A(SELU_SCALE * SELU_ALPHA);
        case SOFTPLUS: return -std::expm1(-a);
        case SWISH: {
            const A c = sigmoid(a);
            return c * (A(1) + a * (A(1) - c));
        }
        default: return A(1);
    }
}

// NaN passes: no comparison holds for it.
template <typename A>
GANKERN_DEVICE A clamped(A v, A clamp) {
    if (clamp < A(0)) return v;
    return v > clamp ? clamp : v < -clamp ? -clamp : v;
}

// Whether the clamp lets the gradient through.
template <typename A>
GANKERN_DEVICE bool unclamped(A y, A clamp) {
    return clamp < A(0) || std::abs(y) < clamp;
}

}  // namespace gankern
