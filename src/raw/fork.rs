//! The epoch: which process this is, counted by forks.
//!
//! **Need.** A forked child has its parent's handlers in its memory. It must neither run nor drop those of shared
//! stacks, only what it registers itself. It also has the locks that other threads of its parent held, which nothing
//! will ever release. So everything that a lock protects has to be tagged with the process that it belongs to, and
//! telling processes apart must cost next to nothing: a `getpid` for each registration (some 200 ns) is too much, and
//! `pthread_atfork` hooks are not called for a raw `clone`.
//!
//! **Mechanism.** An *epoch* is a number that differs between all processes of a line of forks. On Linux it is stored
//! in a page that the kernel fills with zeros in every child that gets a copy of the memory (`MADV_WIPEONFORK`),
//! however the child was created; the first thread to find zero there sets the next epoch. The page is part of
//! [`ROOM`], in this library's own zeroed memory, so it goes away when the library is unloaded.
//!
//! Elsewhere, and where the kernel is emulated without this, the epoch is stored in ordinary memory, and three
//! `pthread_atfork` hooks maintain it with a few atomic operations. They lock nothing, allocate nothing and wait for
//! nothing, because other libraries' hooks run before and after them. Between the first and the last hook, the low bits
//! of the word are not zero, and `getpid` tells which process this is. So hooks that run in a child before ours get the
//! same answer as those that run after it.
//!
//! **What a caller cannot do.** The memory is accessed only through [`peek`] and [`epoch`], as atomics. The unsafe code
//! is four calls of C functions, with arguments that are valid by their types.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest page size that is supported on this architecture.
const PAGE: usize = if cfg!(any(target_arch = "x86", target_arch = "x86_64")) { 1 << 12 } else { 1 << 16 };

const WORD: usize = size_of::<AtomicUsize>();

/// Zeroed memory, large enough to contain a whole page wherever it begins.
static ROOM: [AtomicUsize; 2 * PAGE / WORD] = [const { AtomicUsize::new(0) }; 2 * PAGE / WORD];

/// The index of the word in [`ROOM`] that holds the epoch: [`UNCHOSEN`], [`ORDINARY`], or the first of a whole page.
static PLACE: AtomicUsize = AtomicUsize::new(UNCHOSEN);

/// The index of a word in [`ROOM`] that always holds zero.
const UNCHOSEN: usize = 0;

/// The index of the word in [`ROOM`] that is used where no page is wiped.
const ORDINARY: usize = 1;

/// The step between epochs. Where the word is [`ORDINARY`], the bits below it count the forks in progress.
const STEP: usize = 1 << 8;

/// The last epoch, in ordinary memory: a child continues from its parent's.
static LAST: AtomicUsize = AtomicUsize::new(0);

/// The id of the process whose epoch the word holds, where it is [`ORDINARY`].
static PROCESS: AtomicUsize = AtomicUsize::new(0);

/// Returns the epoch of this process, or some other number if it still has to be determined by [`epoch`].
#[inline]
pub(crate) fn peek() -> usize {
    ROOM[PLACE.load(Ordering::Acquire)].load(Ordering::Relaxed)
}

/// Returns the epoch of this process, which is never zero and never `usize::MAX`.
#[inline]
pub(crate) fn epoch() -> usize {
    match peek() {
        known if known != 0 && known % STEP == 0 => known,
        _ => find_out(),
    }
}

/// Returns whether this is still the process with this epoch. May be called in a signal handler.
#[cfg(feature = "signals")]
pub(super) fn is_still(epoch: usize) -> bool {
    peek() / STEP * STEP == epoch
}

#[cold]
fn find_out() -> usize {
    let mut place = PLACE.load(Ordering::Acquire);
    if place == UNCHOSEN {
        // Several threads may choose at once; the first choice counts.
        let chosen = choose();
        let first = PLACE.compare_exchange(UNCHOSEN, chosen, Ordering::AcqRel, Ordering::Acquire);
        place = first.map_or_else(|theirs| theirs, |_| chosen);
    }
    let word = &ROOM[place];
    let found = word.load(Ordering::Relaxed);
    if found >= STEP && (place != ORDINARY || PROCESS.load(Ordering::Relaxed) == this_process()) {
        return found / STEP * STEP;
    }
    count_on(place, found)
}

/// Sets the next epoch after what the word was found to hold, unless another thread does so first.
fn count_on(place: usize, found: usize) -> usize {
    let next = LAST.load(Ordering::Relaxed) + STEP;
    // Before the word is set: a child forked in between has to continue from here.
    LAST.fetch_max(next, Ordering::Relaxed);
    if place == ORDINARY {
        PROCESS.store(this_process(), Ordering::Relaxed);
    }
    match ROOM[place].compare_exchange(found, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => next,
        Err(theirs) => theirs / STEP * STEP,
    }
}

/// Returns the index for the epoch: that of a page that is wiped on fork, if there can be one.
fn choose() -> usize {
    wiped_page().unwrap_or_else(|| {
        ROOM[ORDINARY].compare_exchange(0, STEP, Ordering::Relaxed, Ordering::Relaxed).ok();
        LAST.fetch_max(STEP, Ordering::Relaxed);
        PROCESS.store(this_process(), Ordering::Relaxed);
        // SAFETY: the three are functions of this library, to which C binds the registration.
        let _without = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        ORDINARY
    })
}

extern "C" fn before() {
    ROOM[ORDINARY].fetch_add(1, Ordering::Relaxed);
}

extern "C" fn in_parent() {
    // Zero if the fork had begun before the hooks were registered.
    let one_less = |word: usize| (word % STEP > 0).then(|| word - 1);
    let _ = ROOM[ORDINARY].fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
}

extern "C" fn in_child() {
    let found = ROOM[ORDINARY].load(Ordering::Relaxed);
    if PROCESS.load(Ordering::Relaxed) != this_process() {
        count_on(ORDINARY, found);
    }
}

fn this_process() -> usize {
    usize::try_from(std::process::id()).unwrap_or(usize::MAX)
}

#[cfg(all(any(target_os = "linux", target_os = "android"), not(exitstack_no_wipe)))]
fn wiped_page() -> Option<usize> {
    // SAFETY: the call only returns a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let from = ROOM.as_ptr().addr();
    let first = (from / page + 1) * page - from; // greater than zero: the first word must stay zero
    if page > PAGE || first <= ORDINARY * WORD {
        return None;
    }
    let place = first / WORD;
    let address = (&raw const ROOM[place]).cast_mut().cast();
    // An emulator may accept any advice and do nothing, as QEMU 7.2 does when it runs a single program.
    // SAFETY: there is no such advice, so the call changes nothing.
    let refuses = unsafe { libc::madvise(address, page, -1) } != 0;
    // SAFETY: the whole page lies in `ROOM`, and holds zeros in this process too, as nothing has used it.
    let wiped = unsafe { libc::madvise(address, page, libc::MADV_WIPEONFORK) } == 0;
    (refuses && wiped).then_some(place)
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(exitstack_no_wipe))))]
fn wiped_page() -> Option<usize> {
    None
}
