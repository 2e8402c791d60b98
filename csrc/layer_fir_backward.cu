// Binding of the gradient of a modulated layer's pass with a filter in it. The filter given is the one that takes it
// back.
#include "fir_binding.h"
#include "layer_binding.h"
#include "layer_fir.cuh"

namespace gankern::fir {
namespace {

template <typename T, typename F>
void run(const MaybeTensor& dy, const MaybeTensor& dys, const Tensor& saved, bool styled, const Tensor& f,
         const layer::Operands<T>& o, const Tensor& dt, const MaybeTensor& totals, int wanted, const Sampling& s,
         bool columns, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        using A = Acc<T>;
        const bool own = totals.has_value();
        const Plan p = plan_of<Tile>(saved, dt, s, own, {pointer(saved), pointer(dy), pointer(dys)}, {pointer(dt)});
        const int64_t sums = own ? totals->size(0) : 0;
        MaybeTensor partial;
        if (own) partial = tile_sums(saved, sums, p);
        const layer::Gradients<T> from{reading<T>(dy), reading<T>(dys), reading<T>(saved), styled};
        const LayerGradLoad<Tile> load{o, from, p.channels, wanted};
        launch_filter<Tile>(load, PlainStore<Tile>{writing<T>(dt)}, filter_of<T>(f, s), writing<A>(partial), p, stream);
        if (own) sum_tiles<T>(*partial, *totals, sums, p, stream);
    });
}

void layer_fir_backward_op(MaybeTensor dy, MaybeTensor dys, Tensor saved, bool styled, Tensor f, MaybeTensor d,
                           MaybeTensor noise, MaybeTensor strength, MaybeTensor bias, MaybeTensor styles, Tensor dt,
                           MaybeTensor totals, int64_t wanted, int64_t noise_step, bool columns, int64_t up_x,
                           int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y, bool flip,
                           double filter_gain, int64_t act, double alpha, double gain, double clamp) {
    const Device device(saved);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(saved, [&](auto type) {
        using T = decltype(type);
        const auto o = layer::operands<T>(d, noise, strength, bias, styles, noise_step,
                                          activation<T>(act, alpha, gain, clamp));
        const auto form = s.is(1, 2) ? run<T, Form<1, 2, 4>> : run<T, Form<1, 1, 4>>;
        form(dy, dys, saved, styled, f, o, dt, totals, static_cast<int>(wanted), s, columns, device.stream);
    });
}

}  // namespace
}  // namespace gankern::fir

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "layer_fir_backward(Tensor? dy, Tensor? dys, Tensor saved, bool styled, Tensor f, Tensor? d, Tensor? noise, "
        "Tensor? strength, Tensor? bias, Tensor? styles, Tensor(a!) dt, Tensor(b!)? totals, int wanted, "
        "int noise_step, bool columns, int up_x, int up_y, int down_x, int down_y, int pad_x, int pad_y, bool flip, "
        "float filter_gain, int act, float alpha, float gain, float clamp) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("layer_fir_backward", TORCH_BOX(&gankern::fir::layer_fir_backward_op));
}
