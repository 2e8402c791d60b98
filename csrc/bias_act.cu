// Binding of bias_act. x is seen as a matrix [rows, cols] of its memory whose channels are the columns, or of whose rows
// each belongs to one channel.
#include "bias_act.cuh"

#include "binding.h"

namespace gankern::bias_act {
namespace {

void forward_op(Tensor x, MaybeTensor bias, MaybeTensor residual, Tensor y, int64_t rows, int64_t cols, int64_t channels,
                bool columns, int64_t act, double alpha, double gain, double clamp) {
    const Device device(x);
    const bool vectors = aligned(x, cols, {pointer(x), pointer(y), pointer(residual)});
    with_type(x, [&](auto type) {
        using T = decltype(type);
        with_layout<T>(vectors, columns, [&](auto v, auto by_column) {
            launch_forward<T, v(), by_column()>(reading<T>(x), reading<T>(bias), reading<T>(residual), writing<T>(y), rows,
                                                cols, channels, activation<T>(act, alpha, gain, clamp), device.stream);
        });
    });
}

void backward_op(Tensor dy, MaybeTensor ddb, MaybeTensor x, MaybeTensor bias, MaybeTensor y, Tensor dx, MaybeTensor db,
                 int64_t rows, int64_t cols, int64_t channels, bool columns, int64_t act, double alpha, double gain,
                 double clamp) {
    const Device device(dy);
    const MaybeTensor& ref = y ? y : x;
    const Saved saved = y ? OUTPUT : x ? INPUT : NOTHING;
    const bool vectors = aligned(dy, cols, {pointer(dy), pointer(dx), pointer(ref)});
    with_type(dy, [&](auto type) {
        using T = decltype(type);
        with_layout<T>(vectors, columns, [&](auto v, auto by_column) {
            const Lines p = plan_backward<v(), by_column()>(rows, cols, channels);
            MaybeTensor partial;
            if (db) partial = sums_like(dy, {p.splits, by_column() ? cols : rows});
            launch_backward<T, v(), by_column()>(reading<T>(dy), reading<T>(ddb), reading<T>(ref), reading<T>(bias),
                                                 writing<T>(dx), writing<Acc<T>>(partial), p, saved,
                                                 activation<T>(act, alpha, gain, clamp), device.stream);
            if (!db) return;
            const int64_t parts = p.splits * (by_column() ? 1 : rows / channels);
            launch_sum_parts<T, Acc<T>>(reading<Acc<T>>(*partial), writing<T>(*db), 1, parts, channels, device.stream);
        });
    });
}

}  // namespace
}  // namespace gankern::bias_act

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "bias_act_forward(Tensor x, Tensor? bias, Tensor? residual, Tensor(a!) y, int rows, int cols, int channels, "
        "bool columns, int act, float alpha, float gain, float clamp) -> ()");
    m.def(
        "bias_act_backward(Tensor dy, Tensor? ddb, Tensor? x, Tensor? bias, Tensor? y, Tensor(a!) dx, Tensor(b!)? db, "
        "int rows, int cols, int channels, bool columns, int act, float alpha, float gain, float clamp) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("bias_act_forward", TORCH_BOX(&gankern::bias_act::forward_op));
    m.impl("bias_act_backward", TORCH_BOX(&gankern::bias_act::backward_op));
}
