// Binding of pixel_norm. x is seen as its memory's [outer, k, inner], normalised along k.
#include "pixel_norm.cuh"

#include "binding.h"

namespace gankern::pixel_norm {
namespace {

// in: x, dy, v; out: what the pass gives.
template <Pass P>
void run(std::initializer_list<Tensor> in, std::initializer_list<Tensor> out, int64_t outer, int64_t k, int64_t inner,
         double eps) {
    const Tensor& x = *in.begin();
    const Device device(x);
    const int64_t innermost = inner > 1 ? inner : k;
    bool vectors = true;
    for (const auto& list : {in, out})
        for (const Tensor& t : list) vectors = vectors && aligned(x, innermost, {t.data_ptr()});
    with_type(x, [&](auto type) {
        using T = decltype(type);
        Tensors<T> t = {};
        for (size_t i = 0; i < in.size(); i++) t.in[i] = reading<T>(in.begin()[i]);
        for (size_t i = 0; i < out.size(); i++) t.out[i] = writing<T>(out.begin()[i]);
        const auto launch = vectors ? launch_pass<P, T, VECTOR<T>> : launch_pass<P, T, 1>;
        launch(t, outer, k, inner, eps, device.stream);
    });
}

void forward_op(Tensor x, Tensor y, int64_t outer, int64_t k, int64_t inner, double eps) {
    run<FORWARD>({x}, {y}, outer, k, inner, eps);
}

void backward_op(Tensor dy, Tensor x, Tensor dx, int64_t outer, int64_t k, int64_t inner, double eps) {
    run<BACKWARD>({x, dy}, {dx}, outer, k, inner, eps);
}

void second_op(Tensor v, Tensor dy, Tensor x, Tensor grad_dy, Tensor grad_x, int64_t outer, int64_t k, int64_t inner,
               double eps) {
    run<SECOND>({x, dy, v}, {grad_dy, grad_x}, outer, k, inner, eps);
}

}  // namespace
}  // namespace gankern::pixel_norm

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def("pixel_norm_forward(Tensor x, Tensor(a!) y, int outer, int k, int inner, float eps) -> ()");
    m.def("pixel_norm_backward(Tensor dy, Tensor x, Tensor(a!) dx, int outer, int k, int inner, float eps) -> ()");
    m.def(
        "pixel_norm_second(Tensor v, Tensor dy, Tensor x, Tensor(a!) grad_dy, Tensor(b!) grad_x, int outer, int k, "
        "int inner, float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("pixel_norm_forward", TORCH_BOX(&gankern::pixel_norm::forward_op));
    m.impl("pixel_norm_backward", TORCH_BOX(&gankern::pixel_norm::backward_op));
    m.impl("pixel_norm_second", TORCH_BOX(&gankern::pixel_norm::second_op));
}
