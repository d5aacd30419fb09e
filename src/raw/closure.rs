//! A handler with its type erased, without an allocation when it is small.
//!
//! **Need.** A stack holds handlers of many types and calls each once, by value. `Box<dyn FnOnce()>` does that at
//! the price of one allocation a handler, which is most of what registering and running a small handler costs; no
//! crate stores an `FnOnce` in place on stable Rust without its own `unsafe`.
//!
//! **Mechanism.** [`Closure`] is a buffer of [`WORDS`] words and a reference to the vtable of the type in it. A
//! [`Task`] that fits the buffer in size and alignment stands in it; any other is boxed, and its [`Boxed`] stands
//! there: for everything below there is one case only.
//!
//! **Who owns the bytes.** From [`Closure::place`] on, the buffer holds one valid value of the vtable's type.
//! [`Closure::run`] first makes the vtable that of [`Spent`], a type without size, of which any buffer holds a value; then
//! it reads the task out and runs it. Dropping the `Closure` drops in place what the buffer holds. So each task is
//! consumed once, and where it stands: it need not be moved to be run. A move of the `Closure` moves the value, as Rust
//! moves any value.
//!
//! **What a caller cannot do.** There is no pointer and no `unsafe fn` to be had from outside. A task's lifetime and
//! `Send` are kept in the type parameter: `Closure<dyn Bound + 'a>`, `Closure<dyn Bound + Send>`; the compiler
//! derives the auto traits from it, and the only constructors demand of the task what it says.

use std::any::{Any, TypeId};
use std::error::Error;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit, align_of, needs_drop, size_of};

use crate::error::{Name, Outcome};

/// How many words stand in place: a closure of three references, or of a `String` or `Vec`.
pub(crate) const WORDS: usize = 3;

type Buffer = MaybeUninit<[usize; WORDS]>;

/// What a handler's `Err` is kept as.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// What can be stored: something that runs once, and may be asked beforehand what it is.
pub trait Task: Sized {
    /// The only outcome for which it runs, if it does not run for both.
    const ONLY: Option<Outcome> = None;

    /// Whether it may have a name or a key; one that has not is never asked.
    const LABELLED: bool = false;

    /// Runs it.
    fn run(self) -> Result<(), BoxError>;

    /// The type of the function in it, as the function's identity.
    fn function() -> TypeId;

    /// Its name.
    fn name(&self) -> Option<&Name> {
        None
    }

    /// Its key, as the `Arc` that keeps it.
    fn key(&self) -> Option<&dyn Any> {
        None
    }
}

/// The empty trait whose objects stand for "anything" in [`Closure`]'s parameter.
pub(crate) trait Bound {}

/// The functions of one type `T`. Each pointer argument must point to a buffer that holds a valid `T`; `run` and
/// `drop` consume that `T`.
struct VTable {
    plain: bool,
    only: Option<Outcome>,
    labelled: bool,
    run: unsafe fn(*mut Buffer) -> Result<(), BoxError>,
    /// None if there is nothing to do.
    drop: Option<unsafe fn(*mut Buffer)>,
    function: fn() -> TypeId,
    name: unsafe fn(*const Buffer) -> Option<*const Name>,
    key: unsafe fn(*const Buffer) -> Option<*const dyn Any>,
}

/// Home of the vtable of `T`.
struct Of<T>(PhantomData<T>);

impl<T: Task> Of<T> {
    const VTABLE: VTable = VTable {
        plain: T::ONLY.is_none() && !T::LABELLED,
        only: T::ONLY,
        labelled: T::LABELLED,
        run: Self::run,
        drop: if needs_drop::<T>() { Some(Self::drop) } else { None },
        function: T::function,
        name: Self::name,
        key: Self::key,
    };

    unsafe fn run(buffer: *mut Buffer) -> Result<(), BoxError> {
        // SAFETY: the buffer holds a valid `T` (vtable's condition), which this read takes out.
        unsafe { buffer.cast::<T>().read() }.run()
    }

    unsafe fn drop(buffer: *mut Buffer) {
        // SAFETY: the buffer holds a valid `T` (vtable's condition), which nobody uses after this.
        unsafe { buffer.cast::<T>().drop_in_place() }
    }

    unsafe fn name(buffer: *const Buffer) -> Option<*const Name> {
        // SAFETY: the buffer holds a valid `T` (vtable's condition).
        unsafe { &*buffer.cast::<T>() }.name().map(|name| &raw const *name)
    }

    unsafe fn key(buffer: *const Buffer) -> Option<*const dyn Any> {
        // SAFETY: the buffer holds a valid `T` (vtable's condition).
        unsafe { &*buffer.cast::<T>() }.key().map(|key| &raw const *key)
    }
}

/// What is left of a task that ran.
struct Spent;

impl Task for Spent {
    fn run(self) -> Result<(), BoxError> {
        Ok(())
    }

    fn function() -> TypeId {
        TypeId::of::<Self>()
    }
}

/// A task too large for the buffer, as one that fits.
pub(crate) struct Boxed<T>(Box<T>);

impl<T: Task> Task for Boxed<T> {
    const ONLY: Option<Outcome> = T::ONLY;
    const LABELLED: bool = T::LABELLED;

    fn run(self) -> Result<(), BoxError> {
        (*self.0).run()
    }

    fn function() -> TypeId {
        T::function()
    }

    fn name(&self) -> Option<&Name> {
        self.0.name()
    }

    fn key(&self) -> Option<&dyn Any> {
        self.0.key()
    }
}

const fn fits<T>() -> bool {
    size_of::<T>() <= size_of::<Buffer>() && align_of::<T>() <= align_of::<Buffer>()
}

/// A task that is stored without another allocation: as it is, or in the box that it needs.
pub(crate) enum Packed<T> {
    InPlace(T),
    Boxed(Boxed<T>),
}

impl<T: Task> Packed<T> {
    #[inline]
    pub(crate) fn new(task: T) -> Self {
        if const { fits::<T>() } { Self::InPlace(task) } else { Self::Boxed(Boxed(Box::new(task))) }
    }

    /// The task, as it was.
    pub(crate) fn unpack(self) -> T {
        match self {
            Self::InPlace(task) => task,
            Self::Boxed(boxed) => *boxed.0,
        }
    }
}

/// A [`Task`] of any type; see the module.
///
/// Invariant: `buffer` holds a valid value of the type that `vtable` is of, and that type is bounded by `B`.
pub(crate) struct Closure<B: ?Sized> {
    buffer: Buffer,
    vtable: &'static VTable,
    bound: PhantomData<Box<B>>,
}

impl<'a> Closure<dyn Bound + 'a> {
    /// Stores a task for the thread that owns the stack.
    #[inline]
    pub(crate) fn new<T: Task + 'a>(task: T) -> Self {
        Self::erase(Packed::new(task))
    }
}

impl Closure<dyn Bound + Send> {
    /// Stores a task that any thread may run.
    #[inline]
    pub(crate) fn new_send<T: Task + Send + 'static>(task: Packed<T>) -> Self {
        Self::erase(task)
    }
}

impl<B: ?Sized> Closure<B> {
    /// Private: the constructors above hold `T` to `B`.
    #[inline]
    fn erase<T: Task>(task: Packed<T>) -> Self {
        const { assert!(fits::<Boxed<T>>()) }
        let boxed = match task {
            Packed::InPlace(task) if const { fits::<T>() } => {
                // SAFETY: `T` fits, that was the question.
                return unsafe { Self::place(task) };
            }
            Packed::InPlace(task) => Boxed(Box::new(task)), // `Packed::new` makes none of these
            Packed::Boxed(boxed) => boxed,
        };
        // SAFETY: `Boxed<T>` fits, asserted above.
        unsafe { Self::place(boxed) }
    }

    /// # Safety
    /// `T` fits the buffer in size and alignment.
    #[inline]
    unsafe fn place<T: Task>(task: T) -> Self {
        let mut buffer = Buffer::uninit();
        // SAFETY: the buffer is large enough and aligned for a `T`, says the caller.
        unsafe { buffer.as_mut_ptr().cast::<T>().write(task) };
        Self { buffer, vtable: &Of::<T>::VTABLE, bound: PhantomData }
    }

    /// Runs the task, the first time; nothing is left of it then.
    #[inline]
    pub(crate) fn run(&mut self) -> Result<(), BoxError> {
        const { assert!(size_of::<Spent>() == 0 && !needs_drop::<Spent>()) }
        let vtable = mem::replace(&mut self.vtable, &Of::<Spent>::VTABLE);
        // SAFETY: the buffer held a valid value of that vtable's type (the invariant), which is consumed here: to whoever
        // looks from now on, it holds a `Spent`, as any buffer does (asserted above).
        unsafe { (vtable.run)(&raw mut self.buffer) }
    }

    /// Drops the task, unrun; nothing is left of it then.
    pub(crate) fn discard(&mut self) {
        drop(mem::replace(self, Self::erase(Packed::InPlace(Spent))));
    }

    /// The only outcome for which it wants to run, if not both.
    #[inline]
    pub(crate) fn only(&self) -> Option<Outcome> {
        self.vtable.only
    }

    /// Whether it has neither name nor key, and runs for any outcome.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.vtable.plain
    }

    /// The type of the function in it.
    pub(crate) fn function(&self) -> TypeId {
        (self.vtable.function)()
    }

    /// Its name.
    pub(crate) fn name(&self) -> Option<&Name> {
        if !self.vtable.labelled {
            return None;
        }
        // SAFETY: the buffer holds a valid value of the vtable's type (the invariant).
        let name = unsafe { (self.vtable.name)(&raw const self.buffer) }?;
        // SAFETY: the name was lent from the value in the buffer, which `self` keeps borrowed as long.
        Some(unsafe { &*name })
    }

    /// Its key, as the `Arc` that keeps it.
    #[inline]
    pub(crate) fn key(&self) -> Option<&dyn Any> {
        if !self.vtable.labelled {
            return None;
        }
        // SAFETY: the buffer holds a valid value of the vtable's type (the invariant).
        let key = unsafe { (self.vtable.key)(&raw const self.buffer) }?;
        // SAFETY: the key was lent from the value in the buffer, which `self` keeps borrowed as long.
        Some(unsafe { &*key })
    }
}

impl<B: ?Sized> Drop for Closure<B> {
    #[inline]
    fn drop(&mut self) {
        if let Some(drop) = self.vtable.drop {
            // SAFETY: the buffer holds a valid value of the vtable's type (the invariant), which is consumed here.
            unsafe { drop(&raw mut self.buffer) }
        }
    }
}
