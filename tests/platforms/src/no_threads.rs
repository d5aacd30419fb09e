//! What std links to start threads, and Debian's C library for WASI lacks. As in newer versions of that library, no thread can
//! be started.

use std::ffi::{c_int, c_void};

const ENOSYS: c_int = 52;

#[unsafe(no_mangle)]
extern "C" fn pthread_attr_init(_attributes: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pthread_attr_setstacksize(_attributes: *mut c_void, _size: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pthread_attr_destroy(_attributes: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pthread_create(
    _thread: *mut c_void,
    _attributes: *const c_void,
    _start: *const c_void,
    _argument: *mut c_void,
) -> c_int {
    ENOSYS
}

#[unsafe(no_mangle)]
extern "C" fn pthread_join(_thread: *const c_void, _value: *mut c_void) -> c_int {
    ENOSYS
}

#[unsafe(no_mangle)]
extern "C" fn pthread_detach(_thread: *const c_void) -> c_int {
    ENOSYS
}
