// Binding of the filter with bias and activation after it (filter_act) or before it (act_filter).
#include "fir_act.cuh"
#include "fir_binding.h"

namespace gankern::fir {
namespace {

template <typename T, typename F>
void filter_act(const Tensor& x, const Tensor& f, const MaybeTensor& bias, const Tensor& y, const Sampling& s,
                bool columns, const Activation<Acc<T>>& act, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const Plan p = plan_of<Tile>(x, y, s, false, {pointer(x)}, {pointer(y)});
        const ActStore<Tile> store{reading<T>(bias), writing<T>(y), act};
        launch_filter<Tile>(PlainLoad<Tile>{reading<T>(x)}, store, filter_of<T>(f, s), {}, p, stream);
    });
}

template <typename T, typename F>
void act_filter(const Tensor& x, const Tensor& f, const MaybeTensor& bias, const Tensor& z, const Sampling& s,
                bool columns, const Activation<Acc<T>>& act, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const Plan p = plan_of<Tile>(x, z, s, false, {pointer(x)}, {pointer(z)});
        const ActLoad<Tile> load{reading<T>(x), reading<T>(bias), act};
        launch_filter<Tile>(load, PlainStore<Tile>{writing<T>(z)}, filter_of<T>(f, s), {}, p, stream);
    });
}

void filter_act_op(Tensor x, Tensor f, MaybeTensor bias, Tensor y, bool columns, int64_t up_x, int64_t up_y,
                   int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y, bool flip, double filter_gain,
                   int64_t act, double alpha, double gain, double clamp) {
    const Device device(x);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(x, [&](auto type) {
        using T = decltype(type);
        const auto run = s.is(2, 1) ? filter_act<T, Form<2, 1, 4>> : filter_act<T, Form<1, 1, 4>>;
        run(x, f, bias, y, s, columns, activation<T>(act, alpha, gain, clamp), device.stream);
    });
}

void act_filter_op(Tensor x, Tensor f, MaybeTensor bias, Tensor z, bool columns, int64_t up_x, int64_t up_y,
                   int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y, bool flip, double filter_gain,
                   int64_t act, double alpha, double gain, double clamp) {
    const Device device(x);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(x, [&](auto type) {
        using T = decltype(type);
        const auto run = s.is(1, 2) ? act_filter<T, Form<1, 2, 4>> : act_filter<T, Form<1, 1, 4>>;
        run(x, f, bias, z, s, columns, activation<T>(act, alpha, gain, clamp), device.stream);
    });
}

}  // namespace
}  // namespace gankern::fir

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "filter_act(Tensor x, Tensor f, Tensor? bias, Tensor(a!) y, bool columns, int up_x, int up_y, int down_x, "
        "int down_y, int pad_x, int pad_y, bool flip, float filter_gain, int act, float alpha, float gain, "
        "float clamp) -> ()");
    m.def(
        "act_filter(Tensor x, Tensor f, Tensor? bias, Tensor(a!) z, bool columns, int up_x, int up_y, int down_x, "
        "int down_y, int pad_x, int pad_y, bool flip, float filter_gain, int act, float alpha, float gain, "
        "float clamp) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("filter_act", TORCH_BOX(&gankern::fir::filter_act_op));
    m.impl("act_filter", TORCH_BOX(&gankern::fir::act_filter_op));
}
