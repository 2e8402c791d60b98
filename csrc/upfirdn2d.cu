// Binding of upfirdn2d: which of its kernels serves a filter.
#include "upfirdn2d_taps.h"

namespace gankern::fir {
namespace {

constexpr int64_t MOST_TAPS = 12;

void direct_op(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream) {
    const bool separable = f.dim() == 1;
    const int taps_x = static_cast<int>(f.size(-1)), taps_y = static_cast<int>(f.size(0));
    with_type(x, [&](auto type) {
        using T = decltype(type);
        const bool vectors = columns && aligned(x, x.size(1), {pointer(x), pointer(y)});
        const auto run = vectors ? launch_direct<T, VECTOR<T>> : launch_direct<T, 1>;
        run(reading<T>(x), reading<Acc<T>>(f), writing<T>(y), image_of(x, y), s, taps_x, taps_y, separable, columns,
            stream);
    });
}

void upfirdn2d_op(Tensor x, Tensor f, Tensor y, bool columns, int64_t up_x, int64_t up_y, int64_t down_x,
                  int64_t down_y, int64_t pad_x, int64_t pad_y, bool flip, double gain) {
    const Device device(x);
    const Sampling s{up_x, up_y, down_x, down_y, pad_x, pad_y, flip, gain};
    const bool factor = s.is(1, 1) || s.is(2, 1) || s.is(1, 2);
    const bool known = f.dim() == 1 && f.numel() <= MOST_TAPS && factor && gain >= 0;
    const bool vectors = !columns || aligned(x, x.size(1), {pointer(x), pointer(y)});
    const int64_t taps = f.numel();
    const auto run = !known || !vectors ? direct_op : taps <= 4 ? run_4_taps : taps <= 8 ? run_8_taps : run_12_taps;
    run(x, f, y, s, columns, device.stream);
}

}  // namespace
}  // namespace gankern::fir

STABLE_TORCH_LIBRARY_FRAGMENT(gankern_cuda, m) {
    m.def(
        "upfirdn2d(Tensor x, Tensor f, Tensor(a!) y, bool columns, int up_x, int up_y, int down_x, int down_y, "
        "int pad_x, int pad_y, bool flip, float gain) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_cuda, GANKERN_BACKEND, m) {
    m.impl("upfirdn2d", TORCH_BOX(&gankern::fir::upfirdn2d_op));
}
