// upfirdn2d's kernels for filters of up to 4 taps.
#include "upfirdn2d_taps.h"

namespace gankern::fir {

void run_4_taps(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream) {
    run_taps<4>(x, f, y, s, columns, stream);
}

}  // namespace gankern::fir
