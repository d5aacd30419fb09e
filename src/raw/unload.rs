//! The unloading of this library while other threads run its code, with glibc.
//!
//! **Need.** `dlclose` calls a library's `atexit` functions, then unmaps its code. It does not wait for a thread that
//! is in C's `exit` and runs another of those functions. So the thread that unloads the library has to wait for the
//! others, and the exit hook has to know whether its thread is the one that unloads, because unloading is not an exit.
//! The loader cannot be asked: `dlclose` holds its lock, so `dladdr` in another thread would wait for the thread that
//! waits for it.
//!
//! **Mechanism.** Two functions in `.fini_array`, whose functions `dlclose` calls on its thread, from last to first.
//! Between the two comes the compiler's own function, which calls the library's `atexit` functions. [`FIRST`] records
//! that this thread unloads the library; [`LAST`] calls the function passed to [`at_unload`], which may wait as long as
//! necessary. When the process ends, both are called as well, after all `atexit` functions: then nothing is unmapped, so
//! the wait may be short.
//!
//! A thread that only has to wait for the end of the process waits inside C, in [`park`], and never returns, so the
//! library that it came from can be unloaded.
//!
//! **What a caller cannot do.** The functions in `.fini_array` have the required type, and do nothing unless
//! [`at_unload`] was called before. All that they reach is in this library, which is unmapped only after they have
//! returned.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

unsafe extern "C" {
    fn __cxa_atexit(handler: unsafe extern "C" fn(*mut c_void), argument: *mut c_void, library: *const c_void)
    -> c_int;
    fn __cxa_finalize(library: *const c_void);
    /// Identifies this program or library by its address.
    static __dso_handle: c_void;
}

/// The function passed to [`at_unload`]. Invariant: null, or a `fn()`.
static WAIT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Whether a thread unloads the library, or is past all `atexit` functions at the end of the process.
static UNLOADING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this is that thread.
    static UNLOADS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: the section is an array of pointers to functions without arguments, which are called one by one at unloading
// and at exit. The compiler's own function is the first without a number, so this one is called before it.
#[unsafe(link_section = ".fini_array")]
#[used]
static FIRST: extern "C" fn() = first;

// SAFETY: as above. Functions with a number come first, in the order of their numbers, so this one is called last.
#[unsafe(link_section = ".fini_array.00000")]
#[used]
static LAST: extern "C" fn() = last;

extern "C" fn first() {
    if !WAIT.load(Ordering::Acquire).is_null() {
        UNLOADS.set(true);
        UNLOADING.store(true, Ordering::SeqCst);
    }
}

extern "C" fn last() {
    let wait = WAIT.load(Ordering::Acquire);
    if !wait.is_null() {
        // SAFETY: the pointer is not null, so it is a `fn()` (the invariant).
        let wait = unsafe { transmute::<*mut (), fn()>(wait) };
        wait();
    }
}

/// Makes the thread that unloads this library call `wait`, after the library's `atexit` functions and before its code
/// is unmapped.
///
/// `wait` must not panic. It is called at the end of the process as well.
pub(crate) fn at_unload(wait: fn()) {
    black_box((&FIRST, &LAST)); // a use, so that no linker leaves them out of the library
    // The first use of a thread-local of this library. In older versions of glibc that takes the loader's lock, which
    // another thread may hold by the time that a hook runs.
    black_box(UNLOADS.get());
    WAIT.store(wait as *mut (), Ordering::Release); // the invariant
}

/// Returns whether this thread unloads this library, whose handlers then run although the process does not end.
pub(crate) fn unloads_here() -> bool {
    UNLOADS.get()
}

/// Returns whether any thread unloads this library.
pub(crate) fn is_unloading() -> bool {
    UNLOADING.load(Ordering::SeqCst)
}

/// Calls the functions that this library has registered with `atexit` and that no thread has taken yet.
#[inline(never)] // inlined into another library, it would call that library's functions
pub(crate) fn call_handlers() {
    // SAFETY: the function may be called any number of times with the handle of the caller's own library.
    unsafe { __cxa_finalize(&raw const __dso_handle) };
}

/// Makes every thread that runs through C's list of functions start again at the head of the list when it returns from
/// the function that it is in, as it does if the list has grown.
///
/// Otherwise C would continue in the same block of the list, which another thread in `exit` may have emptied and freed.
///
/// The function added here replaces the one that this thread is in: C's list must not grow by it into another block,
/// which two threads could free. So it counts as this library's, and a thread that unloads the library takes it off the
/// list.
pub(crate) fn begin_list_anew() {
    // SAFETY: `free` is not part of this library, is never unloaded, and does nothing with null. If C refuses, its list
    // is at its end.
    unsafe { __cxa_atexit(libc::free, ptr::null_mut(), &raw const __dso_handle) };
}

/// Waits for the end of the process. This library may be unloaded in the meantime.
pub(crate) fn park() -> ! {
    let mut barrier = MaybeUninit::uninit();
    loop {
        // SAFETY: the barrier is this thread's own and stays on its stack, because the wait does not return: no signal
        // ends it, and there is no second thread to arrive at the barrier.
        unsafe { libc::pthread_barrier_init(barrier.as_mut_ptr(), ptr::null(), 2) };
        // SAFETY: the barrier was initialized above.
        unsafe { libc::pthread_barrier_wait(barrier.as_mut_ptr()) };
    }
}
