//! Ways out that are bounded by limits.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use exitstack::shutdown::{Limits, set_limits};
use exitstack::{Handler, register};

use crate::c_exit;

/// Registers, above another handler, one that never returns. Once it is given up, it takes what the system wants for an orderly
/// end, and never gives it back.
fn sticks() {
    static MEETING: Barrier = Barrier::new(2);

    set_limits(Limits::new().status(9)).unwrap();
    register(|| {
        MEETING.wait();
        MEETING.wait();
        println!("B");
    });
    let stuck = || {
        println!("stuck");
        MEETING.wait();
        #[cfg(windows)]
        hold_loader_lock();
        MEETING.wait();
        loop {
            thread::park();
        }
    };
    register(Handler::new(stuck).within(Duration::from_millis(100)));
}

#[cfg(windows)]
fn hold_loader_lock() {
    use std::ffi::c_void;
    use std::ptr;

    #[link(name = "ntdll")]
    unsafe extern "system" {
        fn LdrLockLoaderLock(flags: u32, disposition: *mut u32, cookie: *mut *mut c_void) -> i32;
    }

    let mut cookie = ptr::null_mut();
    // SAFETY: without flags it waits for the lock, and wants no disposition; the cookie is live.
    assert_eq!(unsafe { LdrLockLoaderLock(0, ptr::null_mut(), &raw mut cookie) }, 0);
}

/// Does what the case of this name does, and returns; false if there is no such case.
pub(crate) fn leave(case: &str) -> bool {
    match case {
        "limits_after_return" => sticks(),
        "limits_after_c_exit" => {
            sticks();
            c_exit(1)
        }
        "limits_after_exit" => {
            sticks();
            exitstack::exit(1)
        }
        _ => return false,
    }
    true
}
