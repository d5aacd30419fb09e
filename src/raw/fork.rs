//! Which process this is, counted by forks.
//!
//! **Need.** A forked child has its parent's handlers in its memory and must neither run nor drop them, only what it
//! registers itself. So each registration must be told apart by the process that made it, at the price of almost
//! nothing: `getpid` at each (some 200 ns) is too much, and the hooks of `pthread_atfork` are not called for a raw
//! `clone`.
//!
//! **Mechanism.** An *epoch*: a number that is another one in every process of a line of forks. It stands in a page
//! that Linux fills with zeros in every child that gets a copy of the memory (`MADV_WIPEONFORK`), whichever call made
//! the child; who finds zero there counts on. Where there is no such page, the child's hook of `pthread_atfork` counts
//! on.
//!
//! **What a caller cannot do.** The page is never unmapped and is reached by [`epoch`] and [`new_epoch`] alone, as an
//! atomic.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The last epoch known, in ordinary memory: a child starts from its parent's.
static EPOCH: AtomicU64 = AtomicU64::new(1);

/// The page. Invariant: null, or valid for reads and writes as an `AtomicU64` from then on; it holds `EPOCH`, or zero.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The number of this process. Never zero.
#[inline]
pub(crate) fn epoch() -> u64 {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return EPOCH.load(Ordering::Relaxed);
    }
    // SAFETY: not null, hence valid for ever (the invariant).
    let epoch = unsafe { &*page }.load(Ordering::Relaxed);
    if epoch == 0 { new_epoch() } else { epoch }
}

/// Counts on, if this process has not yet: called in a new child.
#[cold]
pub(crate) fn new_epoch() -> u64 {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return EPOCH.fetch_add(1, Ordering::Relaxed) + 1;
    }
    // SAFETY: not null, hence valid for ever (the invariant).
    let page = unsafe { &*page };
    // Several threads of the child may come here at once: one of them counts.
    let next = EPOCH.load(Ordering::Relaxed) + 1;
    match page.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            EPOCH.store(next, Ordering::Relaxed);
            next
        }
        Err(theirs) => theirs,
    }
}

/// Lets the three functions be called around every `fork`, in the forking thread: before it, and after it in parent and
/// child. False if C refuses.
pub(crate) fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> bool {
    map_page();
    // SAFETY: the three are functions of this library, to which C binds the registration.
    unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) == 0 }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn map_page() {
    if !PAGE.load(Ordering::Acquire).is_null() {
        return;
    }
    let length = size_of::<AtomicU64>(); // rounded up to a page
    // SAFETY: a new mapping of memory that is nobody else's.
    let page = unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(ptr::null_mut(), length, access, kind, -1, 0)
    };
    if page == libc::MAP_FAILED {
        return;
    }
    // SAFETY: the mapping made above, which nobody has seen yet.
    let wiped = unsafe { libc::madvise(page, length, libc::MADV_WIPEONFORK) } == 0;
    if !wiped {
        // SAFETY: as above; nobody will see it.
        unsafe { libc::munmap(page, length) };
        return;
    }
    let page = page.cast::<AtomicU64>();
    // SAFETY: the mapping is writable, zeroed (a valid `AtomicU64`) and aligned to a page.
    unsafe { &*page }.store(EPOCH.load(Ordering::Relaxed), Ordering::Relaxed);
    PAGE.store(page, Ordering::Release);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn map_page() {}
