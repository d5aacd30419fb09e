//! A type-erased handler, stored without an allocation if it is small.
//!
//! **Need.** A stack holds handlers of many types and calls each once, by value. `Box<dyn FnOnce()>` does that with one
//! allocation for each handler, which is most of the cost of registering and running a small one; no crate stores an
//! `FnOnce` in place on stable Rust without `unsafe` of its own.
//!
//! **Mechanism.** [`Closure`] is a buffer of [`WORDS`] words and a reference to the vtable of the type in it. A
//! [`Task`] that fits the buffer in size and alignment is stored in it; any other task is boxed, and its [`Boxed`] is
//! stored there. Everything below therefore has only one case to deal with.
//!
//! **Who owns the bytes.** From [`Closure::place`] on, the buffer holds one valid value of the vtable's type.
//! [`Closure::run`] first replaces the vtable with that of [`Spent`], a zero-sized type, so that any buffer holds a
//! valid value of it; then it reads the task out and runs it. Dropping the `Closure` drops in place what the buffer
//! holds. So each task is consumed once, in place: it need not be moved to be run. A move of the `Closure` moves the
//! value, as Rust moves any value.
//!
//! **What a caller cannot do.** No pointer and no `unsafe fn` can be reached from outside. A task's lifetime and `Send`
//! are kept in the type parameter: `Closure<dyn Bound + 'a>`, `Closure<dyn Bound + Send + 'a>`. The compiler derives
//! the auto traits from it, and the only constructors require of the task what it says.

use alloc::boxed::Box;
use core::any::{Any, TypeId};
use core::error::Error;
use core::marker::PhantomData;
use core::mem::{self, MaybeUninit, align_of, needs_drop, size_of};
use core::panic::Location;

use crate::error::{Label, Name, Outcome};

/// The number of words stored in place: enough for a closure over three references, or over a `String` or `Vec`.
pub(crate) const WORDS: usize = 3;

type Buffer = MaybeUninit<[usize; WORDS]>;

/// The type in which a handler's error is kept.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// Something that runs once, and that can be asked for its label, key and function before it does.
pub trait Task: Sized {
    /// The only outcome for which it runs, or `None` if it runs for both.
    const ONLY: Option<Outcome> = None;

    /// Whether it may have a label or a key; if not, it is never asked for one.
    const LABELLED: bool = false;

    /// Whether it looks at the outcome for which it runs.
    const LOOKS: bool = false;

    /// Runs the task, which may look at the outcome unless it is [plain](Closure::is_plain).
    fn run(self, outcome: Outcome) -> Result<(), BoxError>;

    /// Returns the type of the function in it, which is the function's identity.
    fn function() -> TypeId;

    /// Returns its label, if it has one.
    fn label(&self) -> Option<&Label> {
        None
    }

    /// Returns its name, if it has one.
    fn name(&self) -> Option<&Name> {
        self.label()?.name.as_ref()
    }

    /// Returns the place that is shown for it, if that is not where it is registered.
    #[inline]
    fn location(&self) -> Option<&'static Location<'static>> {
        None
    }

    /// Returns its key, if it has one, as the `Arc` that keeps it.
    fn key(&self) -> Option<&dyn Any> {
        None
    }
}

/// An empty trait whose trait objects carry a lifetime and auto traits in [`Closure`]'s type parameter.
pub(crate) trait Bound {}

/// The functions of one type `T`. Each pointer argument must point to a buffer that holds a valid `T`; `run` and
/// `drop` consume that `T`.
struct VTable {
    plain: bool,
    only: Option<Outcome>,
    labelled: bool,
    run: unsafe fn(*mut Buffer, Outcome) -> Result<(), BoxError>,
    /// `None` if `T` needs no drop.
    drop: Option<unsafe fn(*mut Buffer)>,
    function: fn() -> TypeId,
    label: unsafe fn(*const Buffer) -> Option<*const Label>,
    key: unsafe fn(*const Buffer) -> Option<*const dyn Any>,
}

/// The type that has the vtable of `T` as a constant.
struct Of<T>(PhantomData<T>);

impl<T: Task> Of<T> {
    const VTABLE: VTable = VTable {
        plain: T::ONLY.is_none() && !T::LABELLED && !T::LOOKS,
        only: T::ONLY,
        labelled: T::LABELLED,
        run: Self::run,
        drop: if needs_drop::<T>() { Some(Self::drop) } else { None },
        function: T::function,
        label: Self::label,
        key: Self::key,
    };

    unsafe fn run(buffer: *mut Buffer, outcome: Outcome) -> Result<(), BoxError> {
        // SAFETY: the buffer holds a valid `T` (the vtable's condition), which this read takes out.
        unsafe { buffer.cast::<T>().read() }.run(outcome)
    }

    unsafe fn drop(buffer: *mut Buffer) {
        // SAFETY: the buffer holds a valid `T` (the vtable's condition), which nothing uses after this.
        unsafe { buffer.cast::<T>().drop_in_place() }
    }

    unsafe fn label(buffer: *const Buffer) -> Option<*const Label> {
        // SAFETY: the buffer holds a valid `T` (the vtable's condition).
        unsafe { &*buffer.cast::<T>() }.label().map(|label| &raw const *label)
    }

    unsafe fn key(buffer: *const Buffer) -> Option<*const dyn Any> {
        // SAFETY: the buffer holds a valid `T` (the vtable's condition).
        unsafe { &*buffer.cast::<T>() }.key().map(|key| &raw const *key)
    }
}

/// The task that takes the place of one that has run.
struct Spent;

impl Task for Spent {
    fn run(self, _: Outcome) -> Result<(), BoxError> {
        Ok(())
    }

    fn function() -> TypeId {
        TypeId::of::<Self>()
    }
}

/// A task in a box, which fits into the buffer where the task itself does not.
pub(crate) struct Boxed<T>(Box<T>);

impl<T: Task> Task for Boxed<T> {
    const ONLY: Option<Outcome> = T::ONLY;
    const LABELLED: bool = T::LABELLED;
    const LOOKS: bool = T::LOOKS;

    fn run(self, outcome: Outcome) -> Result<(), BoxError> {
        (*self.0).run(outcome)
    }

    fn function() -> TypeId {
        T::function()
    }

    fn label(&self) -> Option<&Label> {
        self.0.label()
    }

    fn key(&self) -> Option<&dyn Any> {
        self.0.key()
    }
}

const fn fits<T>() -> bool {
    size_of::<T>() <= size_of::<Buffer>() && align_of::<T>() <= align_of::<Buffer>()
}

/// A task that can be stored without a further allocation: as it is, or already boxed if it does not fit.
pub(crate) enum Packed<T> {
    InPlace(T),
    Boxed(Boxed<T>),
}

impl<T: Task> Packed<T> {
    #[inline]
    pub(crate) fn new(task: T) -> Self {
        if const { fits::<T>() } { Self::InPlace(task) } else { Self::Boxed(Boxed(Box::new(task))) }
    }

    /// Returns the task, unchanged.
    pub(crate) fn unpack(self) -> T {
        match self {
            Self::InPlace(task) => task,
            Self::Boxed(boxed) => *boxed.0,
        }
    }
}

/// A type-erased [`Task`], as described in the module documentation.
///
/// Invariant: `buffer` holds a valid value of the type that `vtable` belongs to, and that type meets the bounds of `B`.
pub(crate) struct Closure<B: ?Sized> {
    buffer: Buffer,
    vtable: &'static VTable,
    bound: PhantomData<Box<B>>,
}

impl<'a> Closure<dyn Bound + 'a> {
    /// Stores a task for the thread that owns the stack.
    #[inline]
    pub(crate) fn new<T: Task + 'a>(task: Packed<T>) -> Self {
        Self::erase(task)
    }
}

impl<'a> Closure<dyn Bound + Send + 'a> {
    /// Stores a task that any thread may run.
    #[inline]
    pub(crate) fn new_send<T: Task + Send + 'a>(task: Packed<T>) -> Self {
        Self::erase(task)
    }
}

impl<B: ?Sized> Closure<B> {
    /// Erases the type of the task. Private, because it is the constructors above that require the bounds of `B`.
    #[inline]
    fn erase<T: Task>(task: Packed<T>) -> Self {
        const { assert!(fits::<Boxed<T>>()) }
        let boxed = match task {
            Packed::InPlace(task) if const { fits::<T>() } => {
                // SAFETY: `T` fits, as the guard has checked.
                return unsafe { Self::place(task) };
            }
            Packed::InPlace(task) => Boxed(Box::new(task)), // never made by `Packed::new`
            Packed::Boxed(boxed) => boxed,
        };
        // SAFETY: `Boxed<T>` fits, as asserted above.
        unsafe { Self::place(boxed) }
    }

    /// Stores a task in a buffer.
    ///
    /// # Safety
    ///
    /// `T` must fit the buffer in size and alignment.
    #[inline]
    unsafe fn place<T: Task>(task: T) -> Self {
        let mut buffer = Buffer::uninit();
        // SAFETY: the caller promises that the buffer is large enough and aligned for a `T`.
        unsafe { buffer.as_mut_ptr().cast::<T>().write(task) };
        Self { buffer, vtable: &Of::<T>::VTABLE, bound: PhantomData }
    }

    /// Runs the task for this outcome, and leaves nothing of it. Further calls do nothing.
    #[inline]
    pub(crate) fn run(&mut self, outcome: Outcome) -> Result<(), BoxError> {
        const { assert!(size_of::<Spent>() == 0 && !needs_drop::<Spent>()) }
        let vtable = mem::replace(&mut self.vtable, &Of::<Spent>::VTABLE);
        // SAFETY: the buffer holds a valid value of that vtable's type (the invariant), which is consumed here. From
        // now on, the `Closure` holds a `Spent`, of which any buffer is a valid value (asserted above).
        unsafe { (vtable.run)(&raw mut self.buffer, outcome) }
    }

    /// Drops the task without running it, and leaves nothing of it.
    pub(crate) fn discard(&mut self) {
        drop(mem::replace(self, Self::erase(Packed::InPlace(Spent))));
    }

    /// Returns the only outcome for which the task runs, or `None` if it runs for both.
    #[inline]
    pub(crate) fn only(&self) -> Option<Outcome> {
        self.vtable.only
    }

    /// Returns whether the task can have neither a label nor a key, and runs for any outcome without looking at it.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.vtable.plain
    }

    /// Returns the type of the function in the task.
    pub(crate) fn function(&self) -> TypeId {
        (self.vtable.function)()
    }

    /// Returns the task's label, if it has one.
    pub(crate) fn label(&self) -> Option<&Label> {
        if !self.vtable.labelled {
            return None;
        }
        // SAFETY: the buffer holds a valid value of the vtable's type (the invariant).
        let label = unsafe { (self.vtable.label)(&raw const self.buffer) }?;
        // SAFETY: the label is borrowed from the value in the buffer, which stays borrowed through `self` just as long.
        Some(unsafe { &*label })
    }

    /// Returns the task's name, if it has one.
    pub(crate) fn name(&self) -> Option<&Name> {
        self.label()?.name.as_ref()
    }

    /// Returns the task's key, if it has one, as the `Arc` that keeps it.
    #[inline]
    pub(crate) fn key(&self) -> Option<&dyn Any> {
        if !self.vtable.labelled {
            return None;
        }
        // SAFETY: the buffer holds a valid value of the vtable's type (the invariant).
        let key = unsafe { (self.vtable.key)(&raw const self.buffer) }?;
        // SAFETY: the key is borrowed from the value in the buffer, which stays borrowed through `self` just as long.
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
