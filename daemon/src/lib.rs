//! gpuletd: sessions, dispatch and executors.
