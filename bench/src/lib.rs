//! Raw-latency benches and load.
