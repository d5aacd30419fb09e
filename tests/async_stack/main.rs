//! What stacks with async handlers promise, one test each.
#![allow(missing_docs, reason = "tests")]
#![allow(unreachable_pub, reason = "what the tests share")]

#[path = "../compat/async_stacks.rs"]
mod async_stacks;
mod cancelled;
#[path = "../support/compiler.rs"]
mod compiler;
mod draining;
mod dropped;
#[path = "../support/inputs.rs"]
mod inputs;
mod lending;
#[path = "../support/log.rs"]
mod log;
#[allow(dead_code, reason = "the models of tests/api")]
#[path = "../model/mod.rs"]
mod model;
#[path = "../model/async_stacks.rs"]
mod modelled;
#[path = "../support/panicking.rs"]
mod panicking;
mod panics;
mod properties;
#[path = "../support/rude.rs"]
mod rude;
mod runtimes;
mod scope;
mod support;
mod ui;
mod wakers;

type Log = log::Log<&'static str>;
