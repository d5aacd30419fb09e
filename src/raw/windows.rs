//! The C boundary on Windows: the C runtime's `atexit`, and `WriteFile` of the system.
//!
//! They are declared here rather than taken from a crate: five functions, with the prototypes of their documentation,
//! of libraries that Rust's std is linked with in any case. They are called with arguments that are valid by their
//! types: functions of this program or library, slices, and variables to be filled. What a DLL registers with its
//! `atexit` is bound to the DLL and runs when that is unloaded.
//!
//! **What is not done.** `std::process::exit` calls `ExitProcess`, which reaches no `atexit` handler of the program.
//! One is called there all the same if it is made a TLS callback or hangs on a DLL's detaching. But by then every other
//! thread has been ended wherever it was, with the locks it held, and the loader's lock is taken: a handler that takes
//! a lock, starts a thread or loads a library may wait for ever. No handler can be asked to keep to that, so none is
//! run.

use std::ffi::{c_int, c_void};
use std::ptr;

type Handle = *mut c_void;

unsafe extern "C" {
    fn atexit(hook: extern "C" fn()) -> c_int;
}

#[link(name = "kernel32")]
unsafe extern "system" {
    fn GetStdHandle(which: u32) -> Handle;
    fn WriteFile(file: Handle, bytes: *const u8, length: u32, written: *mut u32, overlapped: *mut c_void) -> i32;
    fn GetModuleHandleW(name: *const u16) -> Handle;
    fn GetModuleHandleExW(flags: u32, name: *const c_void, module: *mut Handle) -> i32;
}

const STD_ERROR_HANDLE: u32 = 0_u32.wrapping_sub(12);
const GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT: u32 = 2;
const GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS: u32 = 4;

/// Whether `std::process::exit` calls what was registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = false;

/// Lets C call `hook` when the process ends by return from `main` or by C's `exit`, or when this library is unloaded.
/// False if C refuses.
pub(crate) fn at_exit(hook: extern "C" fn()) -> bool {
    // SAFETY: `hook` is a function of this program or library, to which C binds the registration.
    unsafe { atexit(hook) == 0 }
}

/// Writes to standard error, without a lock and without a buffer; what cannot be written is lost.
pub(crate) fn write_stderr(mut bytes: &[u8]) {
    // SAFETY: asks for a handle of the process's; null or invalid, it is refused by `WriteFile`.
    let stderr = unsafe { GetStdHandle(STD_ERROR_HANDLE) };
    while !bytes.is_empty() {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut written = 0;
        // SAFETY: `length` is at most that of the live slice; `written` is a live variable; a standard handle is not
        // opened for overlapped operation, so null stands there as it should.
        let done = unsafe { WriteFile(stderr, bytes.as_ptr(), length, &raw mut written, ptr::null_mut()) };
        if done == 0 || written == 0 {
            return;
        }
        bytes = &bytes[written as usize..];
    }
}

/// Whether this code is part of the program itself, rather than of a DLL.
pub(crate) fn in_main_program() -> bool {
    extern "C" fn here() {}
    let mut mine = ptr::null_mut();
    let flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    // SAFETY: takes any address, with this flag, and fills the variable it is given; with the other one, it leaves the
    // module's count alone, so there is nothing to give back.
    let found = unsafe { GetModuleHandleExW(flags, here as *const c_void, &raw mut mine) };
    // SAFETY: null asks for the program's module.
    let program = unsafe { GetModuleHandleW(ptr::null()) };
    found == 0 || mine == program
}
