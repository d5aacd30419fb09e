//! The library without std, a promise in each test. A package of its own, so that nothing else asks for the feature.
//!
//! Only the tests themselves use std, to catch panics and to start threads and processes.
#![no_std]
#![cfg(test)]

extern crate alloc;
extern crate std;

mod list;
mod panics;
mod report;
mod scope;
mod stack;
mod support;
