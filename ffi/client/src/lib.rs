//! The client side of gpulet: a [`Session`] with one daemon, and the C functions of
//! `include/gpulet/client.h` over it.
//!
//! The manual (threads, ownership, lifetimes, fork, signals) is `include/gpulet.h`; it holds for
//! Rust programs too, except that the borrow checker enforces most of it.
//!
//! | module      | holds                                                                    |
//! |-------------|--------------------------------------------------------------------------|
//! | [`session`] | the session: claim, submit, reap, wait, release                          |
//! | [`options`] | how to open one                                                          |
//! | [`error`]   | everything that can go wrong, with its status                            |
//! | [`clock`]   | the clock of deadlines                                                   |
//! | [`capi`]    | the exported symbols; no logic                                           |
//! | `control`   | the socket: handshake, model queries, the end; what comes in is judged   |
//! | `catalog`   | the models that were opened                                              |
//! | `fork`      | which process a session belongs to                                       |
//! | `guard`     | null checks, the panic fence, the thread's error text                    |
//!
//! ```no_run
//! use gpulet_client::{Options, Session, Submit};
//!
//! let mut session = Session::open(&Options::default())?;
//! let model = session.model_open("digits")?;
//! let request = session.claim(model.model, 1)?;
//! session.input_mut::<f32>(request, 0)?.fill(0.5);
//! session.submit(request, Submit::default())?;
//! let answer = session.next(u64::MAX)?;
//! assert_eq!(answer.user_data, 0);
//! println!("{:?}", session.output::<f32>(request, 0)?);
//! session.release(request)?;
//! # Ok::<(), gpulet_client::Error>(())
//! ```

pub mod capi;
mod catalog;
pub mod clock;
mod control;
pub mod error;
mod fork;
mod guard;
pub mod options;
pub mod session;

pub use error::Error;
pub use gpulet_abi::layout::{Completion, ModelSpec, TensorSpec};
pub use gpulet_abi::status::Status;
pub use gpulet_abi::tensor::Dtype;
pub use options::{Options, Wait};
pub use session::{Element, Request, Session, SessionInfo, Submit, Tensor};

#[doc(hidden)]
pub use control::fuzz_packet;
