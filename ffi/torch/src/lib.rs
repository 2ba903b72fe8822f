//! A minimal, run-time loaded libtorch: one C++ shim behind a safe Rust face.
