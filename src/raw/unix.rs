//! The C boundary on Unix: `atexit`. The `write` has a file of its own, `stderr.rs`.
//!
//! All functions called here are C's or POSIX's, called with arguments that are valid by their types: functions that
//! live as long as this library is loaded. Each shared library gets its own copy of `atexit`, which binds what it
//! registers to that library and runs it when the library is unloaded. So no function of ours is called after its code
//! is gone.
//!
//! The functions passed to C are `extern "C" fn`: a panic that left them would abort the process. They let none
//! through.

pub(crate) use super::stderr::write_stderr;

/// Whether `std::process::exit` calls the functions registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = true;

/// Registers `hook` for C to call when the process exits or this library is unloaded; returns false if C refuses.
pub(crate) fn at_exit(hook: extern "C" fn()) -> bool {
    // SAFETY: `hook` is a function of this library, to which C binds the registration.
    unsafe { libc::atexit(hook) == 0 }
}

/// Ends the process at once, without calling anything that was registered.
pub(crate) fn end_now(status: std::ffi::c_int) -> ! {
    // SAFETY: `_exit` may be called at any time.
    unsafe { libc::_exit(status) }
}

/// Returns the name of this thread, if the system knows one. Unlike std's, it is available even when thread-locals are
/// gone.
pub(crate) fn thread_name() -> Option<String> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        let mut name = [0_u8; 64];
        // SAFETY: the call only returns the number of this thread.
        let me = unsafe { libc::pthread_self() };
        // SAFETY: the thread is this one, and the length passed is that of the buffer.
        let failed = unsafe { libc::pthread_getname_np(me, name.as_mut_ptr().cast(), name.len()) } != 0;
        #[cfg(target_os = "linux")]
        // SAFETY: the call only returns the number of this thread.
        let is_main = u32::try_from(unsafe { libc::gettid() }) == Ok(std::process::id());
        #[cfg(not(target_os = "linux"))]
        // SAFETY: the call only returns a number.
        let is_main = unsafe { libc::pthread_main_np() } == 1;
        let name = std::ffi::CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned();
        if is_main { Some("main".to_owned()) } else { Some(name).filter(|name| !failed && !name.is_empty()) }
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    None
}

/// Returns whether this code is part of the program itself rather than of a shared library, and true if it is unknown.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))] // there `unload.rs` knows more
pub(crate) fn in_main_program() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::ffi::c_void;

        extern "C" fn here() {}

        /// Returns the base address of the program or library that an address belongs to.
        fn image_of(address: *const c_void) -> Option<*mut c_void> {
            let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
            // SAFETY: the call takes any address, and fills the struct that it is given if it knows the address.
            let known = unsafe { libc::dladdr(address, info.as_mut_ptr()) } != 0;
            // SAFETY: a `Dl_info` consists of four pointers, all of which may be null.
            let info = unsafe { info.assume_init() };
            known.then_some(info.dli_fbase)
        }

        // SAFETY: the call only returns a number that the kernel gave the process.
        let program = unsafe { libc::getauxval(libc::AT_PHDR) };
        image_of(here as *const c_void) == image_of(program as *const c_void)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    true
}
