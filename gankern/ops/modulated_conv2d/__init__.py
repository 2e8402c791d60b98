"""StyleGAN2's modulated convolution as one fused layer.

op       equations, reference, registration, the public functions
layer    a layer's constants and tensors, and its gradients as formulas of differentiable operators
fused    the layer at first order on Triton: which convolution and which kernels run, each way
tile     what every kernel does to a tile of the convolution's output, and the gradient of that
kernels  the pass after a convolution, forward and backward; also a style on the input
fir      that pass with the filter of an upsampling layer in it
gemm     the whole layer in one kernel, where channels are few
"""

from gankern.ops.modulated_conv2d.op import demodulation, modulated_conv2d, modulated_conv2d_reference

__all__ = ["demodulation", "modulated_conv2d", "modulated_conv2d_reference"]
