//! Which process this is, counted by forks.
//!
//! **Need.** A forked child has its parent's handlers in its memory and must neither run nor drop them, only what it
//! registers itself; it also has the locks that other threads of its parent held, which nobody will ever release. So
//! everything that a lock protects must be told apart by the process that it belongs to, and almost for free: `getpid`
//! at each registration (some 200 ns) is too much, and the hooks of `pthread_atfork` are not called for a raw `clone`.
//!
//! **Mechanism.** An *epoch*: a number that differs between all processes of a line of forks. On Linux it is stored in a
//! page that the kernel fills with zeros in every child that gets a copy of the memory (`MADV_WIPEONFORK`), whichever
//! call made the child; the first to find zero there counts on. The page is a part of [`ROOM`], in this library's own
//! zeroed memory, so it goes when the library is unloaded.
//!
//! Elsewhere the epoch is stored in ordinary memory, and `pthread_atfork` is asked for three hooks, each of which does
//! one atomic operation: nothing is locked or allocated, and nothing waits, for other libraries' hooks run before and
//! after them. Between the first and the last hook, the low bits of the word are not zero, and `getpid` is asked which
//! process this is: a child's hooks that run before ours are answered as if ours had run.
//!
//! **What a caller cannot do.** The memory is reached by [`peek`] and [`epoch`] alone, as atomics; what is unsafe are
//! three calls of C, with arguments that are valid by their types.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest page of this kind of machine, as far as it is provided for.
const PAGE: usize = if cfg!(any(target_arch = "x86", target_arch = "x86_64")) { 1 << 12 } else { 1 << 16 };

const WORD: usize = size_of::<AtomicUsize>();

/// Zeroed memory in which a whole page lies, wherever it begins.
static ROOM: [AtomicUsize; 2 * PAGE / WORD] = [const { AtomicUsize::new(0) }; 2 * PAGE / WORD];

/// Which word of [`ROOM`] holds the epoch: [`UNCHOSEN`], [`ORDINARY`], or the first of a whole page.
static PLACE: AtomicUsize = AtomicUsize::new(UNCHOSEN);

/// The word of [`ROOM`] that always holds zero.
const UNCHOSEN: usize = 0;

/// The word of [`ROOM`] that is used where no page is wiped.
const ORDINARY: usize = 1;

/// Epochs are multiples of this. The bits below count the forks that are in progress, where the word is [`ORDINARY`].
const STEP: usize = 1 << 8;

/// The last epoch, in ordinary memory: a child counts on from its parent's.
static LAST: AtomicUsize = AtomicUsize::new(0);

/// The process whose epoch the word holds, where it is [`ORDINARY`].
static PROCESS: AtomicUsize = AtomicUsize::new(0);

/// The epoch of this process; some other number if that has to be found out first, by [`epoch`].
#[inline]
pub(crate) fn peek() -> usize {
    ROOM[PLACE.load(Ordering::Acquire)].load(Ordering::Relaxed)
}

/// The epoch of this process: never zero, and never `usize::MAX`.
#[inline]
pub(crate) fn epoch() -> usize {
    match peek() {
        known if known != 0 && known % STEP == 0 => known,
        _ => find_out(),
    }
}

#[cold]
fn find_out() -> usize {
    let mut place = PLACE.load(Ordering::Acquire);
    if place == UNCHOSEN {
        // Several threads may choose at once: the first choice counts.
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

/// Counts on from what the word was found to hold, unless another thread does so first.
fn count_on(place: usize, found: usize) -> usize {
    let next = LAST.load(Ordering::Relaxed) + STEP;
    // Before the word: a child of this moment counts on from here.
    LAST.fetch_max(next, Ordering::Relaxed);
    if place == ORDINARY {
        PROCESS.store(this_process(), Ordering::Relaxed);
    }
    match ROOM[place].compare_exchange(found, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => next,
        Err(theirs) => theirs / STEP * STEP,
    }
}

/// The place for the epoch: a page that is wiped, if that can be had.
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
    // Not where the fork had begun before the hooks were there.
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
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let from = ROOM.as_ptr().addr();
    let first = (from / page + 1) * page - from; // not the word at the beginning, which stays as it is
    if page > PAGE || first <= ORDINARY * WORD {
        return None;
    }
    let place = first / WORD;
    let address = (&raw const ROOM[place]).cast_mut().cast();
    // SAFETY: a page that lies in `ROOM` whole, and holds zeros in this process too: nobody has used it.
    let wiped = unsafe { libc::madvise(address, page, libc::MADV_WIPEONFORK) } == 0;
    wiped.then_some(place)
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(exitstack_no_wipe))))]
fn wiped_page() -> Option<usize> {
    None
}
