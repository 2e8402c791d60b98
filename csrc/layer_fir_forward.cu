// Binding of a modulated layer's pass with a filter in it.
#include "fir_binding.h"
#include "layer_binding.h"
#include "layer_fir.cuh"

namespace gankern::fir {
namespace {

template <typename T, typename F>
void run(const Tensor& t, const Tensor& f, const layer::Operands<T>& o, const MaybeTensor& y, const MaybeTensor& ys,
         const Sampling& s, bool columns, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const Plan p = plan_of<Tile>(t, y ? *y : *ys, s, false, {pointer(t)}, {pointer(y), pointer(ys)});
        const LayerStore<Tile> store{o, writing<T>(y), writing<T>(ys), p.channels};
        launch_filter<Tile>(PlainLoad<Tile>{reading<T>(t)}, store, filter_of<T>(f, s), {}, p, stream);
    });
}

void layer_fir_forward_op(Tensor t, Tensor f, MaybeTensor d, MaybeTensor noise, MaybeTensor strength, MaybeTensor bias,
                          MaybeTensor styles, MaybeTensor y, MaybeTensor ys, int64_t noise_step, bool columns,
                          int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y,
                          bool flip, double filter_gain, int64_t act, double alpha, double gain, double clamp) {
    const Device device(t);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(t, [&](auto type) {
        using T = decltype(type);
        const auto o = layer::operands<T>(d, noise, strength, bias, styles, noise_step,
                                          activation<T>(act, alpha, gain, clamp));
        const auto form = s.is(2, 1) ? run<T, Form<2, 1, 4>> : run<T, Form<1, 1, 4>>;
        form(t, f, o, y, ys, s, columns, device.stream);
    });
}

}  // namespace
}  // namespace gankern::fir

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "layer_fir_forward(Tensor t, Tensor f, Tensor? d, Tensor? noise, Tensor? strength, Tensor? bias, "
        "Tensor? styles, Tensor(a!)? y, Tensor(b!)? ys, int noise_step, bool columns, int up_x, int up_y, int down_x, "
        "int down_y, int pad_x, int pad_y, bool flip, float filter_gain, int act, float alpha, float gain, "
        "float clamp) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("layer_fir_forward", TORCH_BOX(&gankern::fir::layer_fir_forward_op));
}
