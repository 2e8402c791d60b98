// Binding of the pass between two convolutions of a modulated layer.
#include "layer.cuh"

#include "binding.h"
#include "layer_binding.h"

namespace gankern::layer {
namespace {

void forward_op(Tensor t, MaybeTensor d, MaybeTensor noise, MaybeTensor strength, MaybeTensor bias, MaybeTensor styles,
                MaybeTensor y, MaybeTensor ys, int64_t images, int64_t pixels, int64_t channels, int64_t noise_step,
                bool columns, int64_t act, double alpha, double gain, double clamp) {
    const Device device(t);
    const bool vectors = aligned(t, columns ? channels : pixels, {pointer(t), pointer(y), pointer(ys), pointer(noise)});
    with_type(t, [&](auto type) {
        using T = decltype(type);
        const auto f = activation<T>(act, alpha, gain, clamp);
        const auto o = operands<T>(d, noise, strength, bias, styles, noise_step, f);
        with_layout<T>(vectors, columns, [&](auto v, auto by_column) {
            launch_forward<T, v(), by_column()>(reading<T>(t), o, writing<T>(y), writing<T>(ys), images, pixels, channels,
                                                device.stream);
        });
    });
}

void backward_op(MaybeTensor dy, MaybeTensor dys, Tensor saved, bool styled, MaybeTensor d, MaybeTensor noise,
                 MaybeTensor strength, MaybeTensor bias, MaybeTensor styles, Tensor dt, MaybeTensor totals, int64_t wanted,
                 int64_t images, int64_t pixels, int64_t channels, int64_t noise_step, bool columns, int64_t act,
                 double alpha, double gain, double clamp) {
    const Device device(saved);
    const auto pointers = {pointer(saved), pointer(dt), pointer(dy), pointer(dys), pointer(noise)};
    const bool vectors = aligned(saved, columns ? channels : pixels, pointers);
    with_type(saved, [&](auto type) {
        using T = decltype(type);
        using A = Acc<T>;
        const auto f = activation<T>(act, alpha, gain, clamp);
        const auto o = operands<T>(d, noise, strength, bias, styles, noise_step, f);
        const Gradients<T> from{reading<T>(dy), reading<T>(dys), reading<T>(saved), styled};
        with_layout<T>(vectors, columns, [&](auto v, auto by_column) {
            constexpr bool COLUMNS = by_column();
            const Lines p = plan<v(), COLUMNS>(images, pixels, channels, STEPS, BACKWARD_WAVES);
            // [sums, images, splits, channels], or [sums, splits, planes] along rows
            const int64_t outer = totals ? totals->numel() / (COLUMNS ? channels : images * channels) : 0;
            MaybeTensor partial = totals;
            if (totals && p.splits > 1) partial = sums_like(saved, {totals->numel() * p.splits});
            launch_backward<T, v(), COLUMNS>(from, o, writing<T>(dt), writing<A>(partial), static_cast<int>(wanted), p,
                                             device.stream);
            if (totals && p.splits > 1)
                launch_sum_parts<A, A>(reading<A>(*partial), writing<A>(*totals), outer, p.splits,
                                       totals->numel() / outer, device.stream);
        });
    });
}

}  // namespace
}  // namespace gankern::layer

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "layer_forward(Tensor t, Tensor? d, Tensor? noise, Tensor? strength, Tensor? bias, Tensor? styles, Tensor(a!)? y, "
        "Tensor(b!)? ys, int images, int pixels, int channels, int noise_step, bool columns, int act, float alpha, "
        "float gain, float clamp) -> ()");
    m.def(
        "layer_backward(Tensor? dy, Tensor? dys, Tensor saved, bool styled, Tensor? d, Tensor? noise, Tensor? strength, "
        "Tensor? bias, Tensor? styles, Tensor(a!) dt, Tensor(b!)? totals, int wanted, int images, int pixels, "
        "int channels, int noise_step, bool columns, int act, float alpha, float gain, float clamp) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("layer_forward", TORCH_BOX(&gankern::layer::forward_op));
    m.impl("layer_backward", TORCH_BOX(&gankern::layer::backward_op));
}
