//! Device kernels of gpulet and their CPU twins.
