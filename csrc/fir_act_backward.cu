// Binding of the derivatives of the filter with bias and activation. The filter given to a gradient is the one that
// takes it back.
#include "fir_act.cuh"
#include "fir_binding.h"

namespace gankern::fir {
namespace {

template <typename T, typename F>
void filter_act_grad(const Tensor& dy, const Tensor& f, const MaybeTensor& y, const Tensor& dx, const MaybeTensor& db,
                     const Sampling& s, bool columns, const Activation<Acc<T>>& act, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const bool summed = db.has_value();
        const Plan p = plan_of<Tile>(dy, dx, s, summed, {pointer(dy), pointer(y)}, {pointer(dx)});
        MaybeTensor partial;
        if (summed) partial = tile_sums(dy, 1, p);
        const GradLoad<Tile> load{reading<T>(dy), reading<T>(y), act, summed};
        launch_filter<Tile>(load, PlainStore<Tile>{writing<T>(dx)}, filter_of<T>(f, s), writing<Acc<T>>(partial), p,
                            stream);
        if (summed) sum_to_bias<T>(*partial, *db, p, stream);
    });
}

template <typename T, typename F>
void act_filter_tangent(const Tensor& v, const MaybeTensor& vb, const Tensor& f, const MaybeTensor& x,
                        const MaybeTensor& bias, const Tensor& z, const Sampling& s, bool columns,
                        const Activation<Acc<T>>& act, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const Plan p = plan_of<Tile>(v, z, s, false, {pointer(v), pointer(x)}, {pointer(z)});
        const TangentLoad<Tile> load{reading<T>(v), reading<T>(vb), reading<T>(x), reading<T>(bias), act};
        launch_filter<Tile>(load, PlainStore<Tile>{writing<T>(z)}, filter_of<T>(f, s), {}, p, stream);
    });
}

template <typename T, typename F>
void act_filter_grad(const Tensor& dz, const Tensor& f, const MaybeTensor& x, const MaybeTensor& bias,
                     const Tensor& dx, const MaybeTensor& db, const Sampling& s, bool columns,
                     const Activation<Acc<T>>& act, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const bool summed = db.has_value();
        const Plan p = plan_of<Tile>(dz, dx, s, false, {pointer(dz)}, {pointer(dx), pointer(x)});
        MaybeTensor partial;
        if (summed) partial = tile_sums(dz, 1, p);
        const GradStore<Tile> store{reading<T>(x), reading<T>(bias), writing<T>(dx), act, summed};
        launch_filter<Tile>(PlainLoad<Tile>{reading<T>(dz)}, store, filter_of<T>(f, s), writing<Acc<T>>(partial), p,
                            stream);
        if (summed) sum_to_bias<T>(*partial, *db, p, stream);
    });
}

void filter_act_grad_op(Tensor dy, Tensor f, MaybeTensor y, Tensor dx, MaybeTensor db, bool columns, int64_t up_x,
                        int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y, bool flip,
                        double filter_gain, int64_t act, double alpha, double gain, double clamp) {
    const Device device(dy);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(dy, [&](auto type) {
        using T = decltype(type);
        const auto run = s.is(1, 2) ? filter_act_grad<T, Form<1, 2, 4>> : filter_act_grad<T, Form<1, 1, 4>>;
        run(dy, f, y, dx, db, s, columns, activation<T>(act, alpha, gain, clamp), device.stream);
    });
}

void act_filter_tangent_op(Tensor v, MaybeTensor vb, Tensor f, MaybeTensor x, MaybeTensor bias, Tensor z, bool columns,
                           int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y,
                           bool flip, double filter_gain, int64_t act, double alpha, double gain, double clamp) {
    const Device device(v);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(v, [&](auto type) {
        using T = decltype(type);
        const auto run = s.is(1, 2) ? act_filter_tangent<T, Form<1, 2, 4>> : act_filter_tangent<T, Form<1, 1, 4>>;
        run(v, vb, f, x, bias, z, s, columns, activation<T>(act, alpha, gain, clamp), device.stream);
    });
}

void act_filter_grad_op(Tensor dz, Tensor f, MaybeTensor x, MaybeTensor bias, Tensor dx, MaybeTensor db, bool columns,
                        int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x, int64_t pad_y,
                        bool flip, double filter_gain, int64_t act, double alpha, double gain, double clamp) {
    const Device device(dz);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, filter_gain};
    with_type(dz, [&](auto type) {
        using T = decltype(type);
        const auto run = s.is(2, 1) ? act_filter_grad<T, Form<2, 1, 4>> : act_filter_grad<T, Form<1, 1, 4>>;
        run(dz, f, x, bias, dx, db, s, columns, activation<T>(act, alpha, gain, clamp), device.stream);
    });
}

}  // namespace
}  // namespace gankern::fir

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "filter_act_grad(Tensor dy, Tensor f, Tensor? y, Tensor(a!) dx, Tensor(b!)? db, bool columns, int up_x, "
        "int up_y, int down_x, int down_y, int pad_x, int pad_y, bool flip, float filter_gain, int act, float alpha, "
        "float gain, float clamp) -> ()");
    m.def(
        "act_filter_grad(Tensor dz, Tensor f, Tensor? x, Tensor? bias, Tensor(a!) dx, Tensor(b!)? db, bool columns, "
        "int up_x, int up_y, int down_x, int down_y, int pad_x, int pad_y, bool flip, float filter_gain, int act, "
        "float alpha, float gain, float clamp) -> ()");
    m.def(
        "act_filter_tangent(Tensor v, Tensor? vb, Tensor f, Tensor? x, Tensor? bias, Tensor(a!) z, bool columns, "
        "int up_x, int up_y, int down_x, int down_y, int pad_x, int pad_y, bool flip, float filter_gain, int act, "
        "float alpha, float gain, float clamp) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("filter_act_grad", TORCH_BOX(&gankern::fir::filter_act_grad_op));
    m.impl("act_filter_grad", TORCH_BOX(&gankern::fir::act_filter_grad_op));
    m.impl("act_filter_tangent", TORCH_BOX(&gankern::fir::act_filter_tangent_op));
}
