//! Batches on NVIDIA GPUs: what an executor of mechanism `mps` or `green` is made of.
//!
//! | module      | holds                                                                        |
//! |-------------|------------------------------------------------------------------------------|
//! | [`driver`]  | the CUDA driver's objects, freed when they are dropped                       |
//! | [`memory`]  | memory of the device, and of the host's what is ours and the device reaches  |
//! | `registration` | memory of others that the device reaches, in `pieces`                     |
//! | [`green`]   | parts of a device's multiprocessors                                          |
//! | [`gpu`]     | a device with libtorch on it, and its divisions among gpulets                |
//! | [`load`]    | from an archive to a model that can run                                      |
//! | [`weights`] | what of that model all gpulets share                                         |
//! | [`loaded`]  | that model, on all of them                                                   |
//! | `lane`      | and what it has on one gpulet                                                |
//! | `graph`   | captured forwards, as the driver launches them fastest                       |
//! | `capture`   | from weights to lanes                                                        |
//! | `courtesy`  | threads whose work can wait                                                  |
//! | `ladder`    | which division batches run on, while it changes                              |
//! | [`engine`]  | batches under way                                                            |
//! | [`local`]   | a model in this process, without a daemon                                    |
//! | [`measure`] | what gpulets do, alone and beside each other                                 |
//!
//! The daemon never calls any of this: no fault of a GPU may reach it.

mod accuracy;
mod builtin;
mod capture;
mod courtesy;
pub mod driver;
pub mod engine;
pub mod gpu;
mod graph;
pub mod green;
mod ladder;
mod lane;
pub mod load;
pub mod loaded;
pub mod local;
pub mod measure;
pub mod memory;
mod moves;
mod pieces;
mod prime;
mod regions;
pub mod registration;
pub mod weights;
