//! Variables of this backend. A backend has one thread; a Rust thread-local in a shared library costs a
//! function call per access, which is more than the rest of an idle hook.

use std::cell::{Cell, RefCell};

/// A number of this backend.
pub struct Local<T>(Cell<T>);

// SAFETY: PostgreSQL's processes run extension code on their first thread; those that are started beside it (`host`, and what core does
// with several) know nothing of these.
unsafe impl<T> Sync for Local<T> {}

impl<T: Copy> Local<T> {
    /// With its first value.
    pub const fn new(value: T) -> Self {
        Self(Cell::new(value))
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        self.0.get()
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: T) {
        self.0.set(value);
    }

    /// Sets the value and returns the one before.
    #[inline]
    pub fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }
}

/// A new value: apart, because until it is in its box it is as big as it is, on the stack of whoever asks.
#[cold]
#[inline(never)]
fn boxed<T>(make: impl FnOnce() -> T) -> Box<T> {
    Box::new(make())
}

/// Something bigger of this backend, borrowed for a moment.
pub struct LocalBox<T>(RefCell<Option<Box<T>>>);

// SAFETY: as for Local.
unsafe impl<T> Sync for LocalBox<T> {}

impl<T> LocalBox<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// Runs `work` on the value, made by `make` if need be; None while it is in use.
    pub fn with<R>(&self, make: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut value = self.0.try_borrow_mut().ok()?;
        if value.is_none() {
            *value = Some(boxed(make));
        }
        value.as_mut().map(|value| work(value))
    }

    /// Forgets the value, unless it is in use.
    pub fn forget(&self) {
        if let Ok(mut value) = self.0.try_borrow_mut() {
            *value = None;
        }
    }
}
