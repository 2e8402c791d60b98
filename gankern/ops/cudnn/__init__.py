"""Whole layers in one kernel each: graphs of a convolution and all that stands around it, which cuDNN compiles."""
