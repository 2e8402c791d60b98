// Binding of minibatch_stddev.
#include "minibatch_stddev.cuh"

#include "binding.h"

namespace gankern::minibatch_stddev {
namespace {

// What both take of x [N, C, H, W] and of y, which has `parts` more channels: sizes, and whether 16-byte vectors fit.
struct Problem {
    Sizes p;
    bool vectors;

    Problem(const Tensor& x, const Tensor& y, const Tensor& dx, int64_t group, bool columns) {
        const int64_t pixels = x.size(2) * x.size(3), parts = y.size(1) - x.size(1);
        p = sizes(x.size(0), x.size(1), pixels, group, parts, columns);
        vectors = aligned(x, columns ? p.channels : p.items, {x.data_ptr(), y.data_ptr(), dx.data_ptr()}) &&
                  aligned(x, columns ? y.size(1) : y.size(1) * pixels, {});
    }
};

template <typename T, typename F>
void with_vectors(bool vectors, F fn) {
    if (vectors) return fn(Number<VECTOR<T>>());
    return fn(Number<1>());
}

void forward_op(Tensor x, Tensor y, int64_t group, bool columns, double eps) {
    const Device device(x);
    const Problem problem(x, y, y, group, columns);
    const Sizes& p = problem.p;
    with_type(x, [&](auto type) {
        using T = decltype(type);
        with_vectors<T>(problem.vectors, [&](auto v) {
            const Plan plan = plan_forward<v()>(p);
            MaybeTensor partial;
            if (plan.splits > 1) partial = sums_like(x, {int64_t(p.groups) * p.parts, plan.splits});
            launch_forward<T, v()>(reading<T>(x), writing<T>(y), writing<Acc<T>>(partial), p, plan, eps, device.stream);
            if (partial) launch_fill<T>(reading<Acc<T>>(partial), writing<T>(y), p, plan, device.stream);
        });
    });
}

void backward_op(Tensor dy, Tensor x, Tensor dx, int64_t group, bool columns, double eps) {
    const Device device(x);
    const Problem problem(x, dy, dx, group, columns);
    const Sizes& p = problem.p;
    with_type(x, [&](auto type) {
        using T = decltype(type);
        MaybeTensor sums;
        if (!small_map(p)) {
            sums = sums_like(x, {int64_t(p.groups) * p.parts});
            launch_sum_maps<T>(reading<T>(dy), writing<Acc<T>>(sums), p, device.stream);
        }
        with_vectors<T>(problem.vectors, [&](auto v) {
            launch_backward<T, v()>(reading<T>(dy), reading<T>(x), writing<T>(dx), reading<Acc<T>>(sums), p, eps,
                                    device.stream);
        });
    });
}

}  // namespace
}  // namespace gankern::minibatch_stddev

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def("minibatch_stddev_forward(Tensor x, Tensor(a!) y, int group, bool columns, float eps) -> ()");
    m.def("minibatch_stddev_backward(Tensor dy, Tensor x, Tensor(a!) dx, int group, bool columns, float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("minibatch_stddev_forward", TORCH_BOX(&gankern::minibatch_stddev::forward_op));
    m.impl("minibatch_stddev_backward", TORCH_BOX(&gankern::minibatch_stddev::backward_op));
}
