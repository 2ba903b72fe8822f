//! `gpuletd`: sessions, dispatch and executors.
//!
//! One process with one thread serves everybody ([`server`]): clients connect over a Unix socket
//! ([`connection`], [`access`]) and get a session ([`session`]), a region of shared memory in which
//! their requests and answers travel. The dispatcher ([`dispatch`]) takes requests ([`request`]) from
//! the rings, keeps a queue for each model ([`models`]), lets the planner's policy close batches, and
//! hands them to gpulets ([`gpulet`]). Executors ([`executor`]) host these, one or several each: they
//! are the processes that run the models (`gpulet-executor`, whose own code is in [`execute`],
//! [`backend`] and [`cuda`]). The two talk as [`wire`] says. [`device`] knows the GPUs, and [`mps`]
//! keeps that running which holds shares of them. [`config`], [`model`] and [`limits`] are what it is
//! told from outside; [`state`] and [`notify`] are what it tells.
//!
//! Nothing on the way of a request allocates, blocks or looks at payload.

pub mod access;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod cuda;
pub mod device;
pub mod dispatch;
pub mod document;
pub mod execute;
pub mod executor;
pub mod gpulet;
pub mod limits;
pub mod log;
pub mod model;
pub mod models;
pub mod mps;
pub mod notify;
pub mod request;
pub mod server;
pub mod session;
pub mod share;
pub mod state;
pub mod store;
pub mod wire;
