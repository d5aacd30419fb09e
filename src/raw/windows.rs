//! The C boundary on Windows: the C runtime's `atexit`, and `WriteFile` and `TerminateProcess` of the system.
//!
//! The functions are declared here, with the prototypes of their documentation, rather than taken from a crate.
//! They belong to libraries with which Rust's std is linked in any case, and are called with arguments that are valid
//! by their types: functions of this program or library, slices, and variables to be filled. What a DLL registers with
//! its `atexit` is bound to the DLL and runs when that is unloaded.
//!
//! **What is not done.** `std::process::exit` calls `ExitProcess`, which calls none of the program's `atexit`
//! functions. A TLS callback or the detach notification of a DLL would still be called. But by then every other thread
//! has been terminated wherever it was, with the locks that it held, and the loader lock is held: a handler that takes
//! a lock, starts a thread or loads a library could block forever. No handler can be expected to avoid all that, so
//! none is run.
//!
//! For the same reason the process is not ended with `_exit` or `ExitProcess` where a handler was given up: they wait for
//! the C runtime's lock and for the loader lock, and that handler may hold either forever. `TerminateProcess` waits for
//! nothing.

use std::ffi::{c_int, c_void};
use std::ptr;

type Handle = *mut c_void;

unsafe extern "C" {
    fn atexit(hook: extern "C" fn()) -> c_int;
}

#[link(name = "kernel32")]
unsafe extern "system" {
    fn GetCurrentProcess() -> Handle;
    fn TerminateProcess(process: Handle, status: u32) -> i32;
    fn GetStdHandle(which: u32) -> Handle;
    fn WriteFile(file: Handle, bytes: *const u8, length: u32, written: *mut u32, overlapped: *mut c_void) -> i32;
    fn GetModuleHandleW(name: *const u16) -> Handle;
    fn GetModuleHandleExW(flags: u32, name: *const c_void, module: *mut Handle) -> i32;
}

const STD_ERROR_HANDLE: u32 = 0_u32.wrapping_sub(12);
#[cfg(feature = "signals")]
const GET_MODULE_HANDLE_EX_FLAG_PIN: u32 = 1;
const GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT: u32 = 2;
const GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS: u32 = 4;

/// Whether `std::process::exit` calls the functions registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = false;

/// Registers `hook` for C to call when the process returns from `main` or calls C's `exit`, or when this library is
/// unloaded; returns false if C refuses.
pub(crate) fn at_exit(hook: extern "C" fn()) -> bool {
    // SAFETY: `hook` is a function of this program or library, to which C binds the registration.
    unsafe { atexit(hook) == 0 }
}

/// Writes to standard error without a lock or a buffer. What cannot be written is lost.
pub(crate) fn write_stderr(mut bytes: &[u8]) {
    // SAFETY: the call returns a handle of the process; if it is null or invalid, `WriteFile` refuses it.
    let stderr = unsafe { GetStdHandle(STD_ERROR_HANDLE) };
    while !bytes.is_empty() {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut written = 0;
        // SAFETY: `length` is at most that of the live slice; `written` is a live variable; a standard handle is not
        // opened for overlapped operation, so the last argument is null.
        let done = unsafe { WriteFile(stderr, bytes.as_ptr(), length, &raw mut written, ptr::null_mut()) };
        if done == 0 || written == 0 {
            return;
        }
        bytes = &bytes[written as usize..];
    }
}

/// Returns whether this code is part of the program itself rather than of a DLL.
pub(crate) fn in_main_program() -> bool {
    extern "C" fn here() {}
    let mut mine = ptr::null_mut();
    let flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    // SAFETY: with the one flag the call takes any address, and fills the variable that it is given; with the other it
    // leaves the module's reference count unchanged, so there is nothing to release.
    let found = unsafe { GetModuleHandleExW(flags, here as *const c_void, &raw mut mine) };
    // SAFETY: null stands for the program's own module.
    let program = unsafe { GetModuleHandleW(ptr::null()) };
    found == 0 || mine == program
}

/// Keeps the DLL that this code is part of loaded until the process ends; returns false if the system refuses.
#[cfg(feature = "signals")]
pub(super) fn keep_loaded() -> bool {
    extern "C" fn here() {}
    let mut mine = ptr::null_mut();
    let flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN;
    // SAFETY: with these flags the call takes any address, and fills the variable that it is given.
    unsafe { GetModuleHandleExW(flags, here as *const c_void, &raw mut mine) != 0 }
}

/// Ends the process at once, without calling anything that was registered.
pub(crate) fn end_now(status: i32) -> ! {
    // SAFETY: the call only returns a constant.
    let me = unsafe { GetCurrentProcess() };
    // SAFETY: that constant stands for this process, with every right to it.
    unsafe { TerminateProcess(me, u32::from_ne_bytes(status.to_ne_bytes())) };
    super::park() // the documentation does not say that the call never returns
}

/// Returns the name of this thread, if the system knows one: it does not.
pub(crate) fn thread_name() -> Option<String> {
    None
}
