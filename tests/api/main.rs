//! What the stacks promise, one test each, in a single binary to link only once.
#![allow(missing_docs, reason = "tests")]
#![allow(unreachable_pub, reason = "`model` is shared with the fuzz targets")]

#[path = "../support/compiler.rs"]
mod compiler;
mod corpus;
#[path = "../compat/cpython.rs"]
mod cpython;
mod errors;
mod guards;
mod handler;
#[path = "../support/inputs.rs"]
mod inputs;
mod list;
#[path = "../support/log.rs"]
mod log;
#[allow(dead_code, reason = "what only other models use")]
#[path = "../model/mod.rs"]
mod model;
mod outcomes;
#[path = "../support/panicking.rs"]
mod panicking;
mod positions;
mod properties;
mod report;
#[path = "../support/rude.rs"]
mod rude;
mod scope;
mod shared;
mod stack;
#[path = "../support/stderr.rs"]
mod stderr;
mod support;
mod threads;
mod types;
mod ui;
#[path = "../support/watched.rs"]
mod watched;
