"""What a layer computes beyond transformers' own code: one interface, and its implementations by name.

`base.LayerKernels` is the interface. `torch_kernels` is the reference, of torch's operators, and runs on any
device; `native_kernels` is C++ for CPUs. A Triton one for GPUs has its place beside them.

May import: values, core.blocks, native.
"""
