//! The C boundary on Unix: `atexit`; `write` has a file of its own, `stderr.rs`.
//!
//! Every function called here is one of C's or POSIX's, called with arguments that are valid by their types: functions
//! that live as long as this library is loaded. `atexit` is one of those that a shared library gets its own copy of:
//! what it registers is bound to the library and runs when that is unloaded. So no function of ours is called after its
//! code is gone.
//!
//! The functions handed to C are `extern "C" fn`: a panic that reached their edge would abort. They let none through.

pub(crate) use super::stderr::write_stderr;

/// Whether `std::process::exit` calls what was registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = true;

/// Lets C call `hook` when the process ends, or when this library is unloaded. False if C refuses.
pub(crate) fn at_exit(hook: extern "C" fn()) -> bool {
    // SAFETY: `hook` is a function of this library, to which C binds the registration.
    unsafe { libc::atexit(hook) == 0 }
}

/// Whether this code is part of the program itself, rather than of a shared library. Where that cannot be told, it is.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))] // there `unload.rs` knows more
pub(crate) fn in_main_program() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::ffi::c_void;

        extern "C" fn here() {}

        /// The program or library that an address belongs to, by where it begins.
        fn image_of(address: *const c_void) -> Option<*mut c_void> {
            let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
            // SAFETY: takes any address; fills the struct it is given, if it knows the address.
            let known = unsafe { libc::dladdr(address, info.as_mut_ptr()) } != 0;
            // SAFETY: a `Dl_info` is four pointers, all of which may be null.
            let info = unsafe { info.assume_init() };
            known.then_some(info.dli_fbase)
        }

        // SAFETY: asks for a number that the kernel gave the process.
        let program = unsafe { libc::getauxval(libc::AT_PHDR) };
        image_of(here as *const c_void) == image_of(program as *const c_void)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    true
}
