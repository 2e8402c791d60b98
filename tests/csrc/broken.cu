// A kernel with one fault of each kind, to see that the emulation catches it: y reverses each group of 64 values of x.
#include "binding.h"

namespace {

using namespace gankern;

enum Fault { NONE, NO_BARRIER, READ_PAST, WRITE_PAST, SHARED_PAST, UNWRITTEN, MISALIGNED, BARRIER_FOR_SOME, EARLY_RETURN };

constexpr int GROUP = 64;

GANKERN_KERNEL(GROUP) reverse(View<const float> x, View<float> y, int fault) {
    const int t = threadIdx.x;
    const int64_t first = int64_t(blockIdx.x) * GROUP;
    const Shared<float> row = shared_memory<float>(0, GROUP);
    if (fault == EARLY_RETURN && t == 3) return;
    if (fault != UNWRITTEN || t != 5)
        *row.write(fault == SHARED_PAST ? t + 1 : t, 1) = *x.read(first + t + (fault == READ_PAST), 1);
    if (fault == BARRIER_FOR_SOME ? t % 2 == 0 : fault != NO_BARRIER) __syncthreads();
    const float value = *row.read(GROUP - 1 - t, 1);
    if (fault == MISALIGNED && t == 0) store(y, first + 1, Packed<float, 4>{});
    else *y.write(first + t + (fault == WRITE_PAST), 1) = value;
}

void run(Tensor x, Tensor y, int64_t fault) {
    const dim3 blocks(static_cast<unsigned>(x.numel() / GROUP));
    launch(reverse, {blocks, GROUP, GROUP * sizeof(float), nullptr}, reading<float>(x), writing<float>(y), int(fault));
}

// out[t] = Σ over the warp of x, and the warp's value of lane 3, through shuffles.
GANKERN_KERNEL(GROUP) shuffles(View<const float> x, View<float> sum, View<float> third) {
    const int t = threadIdx.x;
    float s = value(x, t);
    *third.write(t, 1) = __shfl_sync(~0u, s, 3);
    for (int mask = 16; mask > 0; mask /= 2) s += __shfl_xor_sync(~0u, s, mask);
    *sum.write(t, 1) = s;
}

void run_shuffles(Tensor x, Tensor sum, Tensor third) {
    launch(shuffles, {dim3(1), GROUP, 0, nullptr}, reading<float>(x), writing<float>(sum), writing<float>(third));
}

}  // namespace

STABLE_TORCH_LIBRARY(gankern_broken, m) {
    m.def("reverse(Tensor x, Tensor(a!) y, int fault) -> ()");
    m.def("shuffles(Tensor x, Tensor(a!) sum, Tensor(b!) third) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gankern_broken, CPU, m) {
    m.impl("reverse", TORCH_BOX(&run));
    m.impl("shuffles", TORCH_BOX(&run_shuffles));
}
