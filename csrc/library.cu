// The namespace gankern_cuda of torch's operators. In the host build also how its threads run.
#include "binding.h"

STABLE_TORCH_LIBRARY(gankern_cuda, m) {
    (void)m;  // each operator adds its own
}

#ifdef GANKERN_HOST
// order: 0 forward, 1 reversed, 2 shuffled by `seed`; `races`: whether shared memory is watched.
extern "C" __attribute__((visibility("default"))) void gankern_emulate(int order, unsigned seed, bool races) {
    gankern::emulate::order = static_cast<gankern::emulate::Order>(order);
    gankern::emulate::seed = seed;
    gankern::emulate::races = races;
}
#endif
