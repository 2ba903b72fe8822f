//! The client side: session, and the C functions of include/gpulet/client.h.
