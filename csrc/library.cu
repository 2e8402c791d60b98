// The namespace gankern_cuda of torch's operators, to which each operator adds its own.
#include "binding.h"

STABLE_TORCH_LIBRARY(gankern_cuda, m) { (void)m; }
