//! The unloading of this library while other threads run its code: glibc.
//!
//! **Need.** `dlclose` calls a library's `atexit` handlers, then unmaps its code; it does not wait for a thread that is
//! in C's `exit` and runs another of those handlers. Who unloads must wait, and `hook` must know who that is: unloading
//! is no exit. The loader cannot be asked: `dlclose` holds its lock, so that `dladdr` in the other thread would wait for
//! the thread that waits for it.
//!
//! **Mechanism.** Two functions in `.fini_array`, which `dlclose` calls on its thread, from the end of the array.
//! Between them comes the compiler's own, which calls the library's `atexit` handlers. [`FIRST`] notes that this thread
//! unloads the library; [`LAST`] calls the function that [`at_unload`] was given, which may wait as long as it has to.
//! The end of the process calls the two as well, after all `atexit` handlers: then nobody is left to wait for.
//!
//! A thread that is to do nothing but wait for the end of the process waits inside C, by [`park`], and never comes back:
//! a library that it came from may be unloaded.
//!
//! **What a caller cannot do.** The functions in `.fini_array` have the type that they must have, and do nothing unless
//! [`at_unload`] was called before. What they reach stays in this library, which is unmapped after they have returned.

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
    /// Stands for this program or library, by its address.
    static __dso_handle: c_void;
}

/// Invariant: null, or a `fn()`.
static WAIT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// A thread unloads the library, or is past all `atexit` handlers at the end of the process.
static UNLOADING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread is that one.
    static UNLOADS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: the section is an array of pointers to functions without arguments, which are called one by one at the end.
// The compiler's own function is the first without a number, so this one is called before it.
#[unsafe(link_section = ".fini_array")]
#[used]
static FIRST: extern "C" fn() = first;

// SAFETY: as above. Sorted by number, those come before all others, so this one is called after them.
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
        // SAFETY: not null, hence a `fn()` (the invariant).
        let wait = unsafe { transmute::<*mut (), fn()>(wait) };
        wait();
    }
}

/// Has `wait` called on the thread that unloads this library, after its `atexit` handlers: when it returns, the code
/// is unmapped. It must not panic. It is called at the end of the process as well.
pub(crate) fn at_unload(wait: fn()) {
    black_box((&FIRST, &LAST)); // named, so that no linker leaves them out of the library
    // Also the first use of a thread-local of this library. In older versions of glibc that takes the loader's lock,
    // which another thread may hold when a hook runs.
    black_box(UNLOADS.get());
    WAIT.store(wait as *mut (), Ordering::Release); // the invariant
}

/// Whether this thread unloads this library, so that its handlers run though the process does not end.
pub(crate) fn unloads_here() -> bool {
    UNLOADS.get()
}

/// Whether any thread does.
pub(crate) fn is_unloading() -> bool {
    UNLOADING.load(Ordering::SeqCst)
}

/// Calls what this library has registered with `atexit`, as far as no thread has taken it yet.
#[inline(never)] // in another library, it would be about that
pub(crate) fn call_handlers() {
    // SAFETY: may be called any number of times, with the handle of the library that the caller is in.
    unsafe { __cxa_finalize(&raw const __dso_handle) };
}

/// Lets every thread that goes through C's list of handlers begin anew with it, when it comes back from the handler that
/// it is in: they do if the list has grown. Else C would go on where it was, in a block of the list that another thread in
/// `exit` may have emptied and freed.
pub(crate) fn begin_list_anew() {
    // SAFETY: `free` is not part of this library, is never unloaded, and does nothing with null. If C refuses, its list
    // has come to the end.
    unsafe { __cxa_atexit(libc::free, ptr::null_mut(), ptr::null()) };
}

/// Waits for the end of the process. This library may be unloaded under it.
pub(crate) fn park() -> ! {
    let mut barrier = MaybeUninit::uninit();
    loop {
        // SAFETY: a barrier of this thread's own, which stays on its stack: the second of its two threads never comes, so
        // that the wait, which no signal ends, does not return.
        unsafe { libc::pthread_barrier_init(barrier.as_mut_ptr(), ptr::null(), 2) };
        // SAFETY: initialised above.
        unsafe { libc::pthread_barrier_wait(barrier.as_mut_ptr()) };
    }
}
