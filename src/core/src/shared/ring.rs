//! A ring of samples: many writers that never wait, any number of readers with cursors of their own.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// One place in the ring: a stamp and the sample's words.
///
/// The stamp of position p is 2p + 1 while p is written and 2p + 2 when it is complete (a sequence lock
/// in the manner of Lamport, "Concurrent reading and writing", 1977); 0: never written.
#[repr(C)]
#[derive(Debug)]
pub struct Entry<const W: usize> {
    stamp: AtomicU64,
    words: [AtomicU64; W],
}

impl<const W: usize> Default for Entry<W> {
    fn default() -> Self {
        Self { stamp: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; W] }
    }
}

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// It is in the ring. Else it was given up, because a writer that the ring has lapped meanwhile still works
    /// on its place; readers count such a position as lost.
    pub kept: bool,
    /// Another half of the ring is full: readers who come now have not lost anything yet.
    pub half: bool,
}

/// The ring over borrowed memory.
#[derive(Clone, Copy, Debug)]
pub struct SampleRing<'a, const W: usize> {
    head: &'a AtomicU64,
    entries: &'a [Entry<W>],
}

impl<'a, const W: usize> SampleRing<'a, W> {
    /// A ring whose next position is `head`; without entries every sample is lost.
    pub fn new(head: &'a AtomicU64, entries: &'a [Entry<W>]) -> Self {
        Self { head, entries }
    }

    /// The position the next sample gets: where a new reader starts.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Samples the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Adds a sample, over the oldest one.
    pub fn push(&self, words: &[u64; W]) -> Pushed {
        if self.entries.is_empty() {
            return Pushed { kept: false, half: false };
        }
        let position = self.head.fetch_add(1, Ordering::AcqRel);
        let half = (self.entries.len() as u64 / 2).max(1);
        Pushed { kept: self.write(position, words), half: position.wrapping_add(1).is_multiple_of(half) }
    }

    fn write(&self, position: u64, words: &[u64; W]) -> bool {
        let entry = &self.entries[(position % self.entries.len() as u64) as usize];
        let writing = position.wrapping_mul(2).wrapping_add(1);
        let before = entry.stamp.load(Ordering::Relaxed);
        if before & 1 == 1 || before > writing {
            return false;
        }
        if entry.stamp.compare_exchange(before, writing, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        fence(Ordering::Release);
        for (place, word) in entry.words.iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        entry.stamp.store(writing.wrapping_add(1), Ordering::Release);
        true
    }

    /// Hands every sample from `cursor` on to `each`, moves the cursor to the head and returns how many
    /// positions were lost (overwritten before they were read, or not complete).
    pub fn drain(&self, cursor: &mut u64, mut each: impl FnMut(&[u64; W])) -> u64 {
        let head = self.head();
        let first = (*cursor).max(head.saturating_sub(self.entries.len() as u64));
        let mut lost = first.saturating_sub(*cursor);
        for position in first..head {
            match self.read(position) {
                Some(words) => each(&words),
                None => lost += 1,
            }
        }
        *cursor = head;
        lost
    }

    fn read(&self, position: u64) -> Option<[u64; W]> {
        let entry = &self.entries[(position % self.entries.len() as u64) as usize];
        let complete = position.wrapping_mul(2).wrapping_add(2);
        if entry.stamp.load(Ordering::Acquire) != complete {
            return None;
        }
        let words = std::array::from_fn(|i| entry.words[i].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (entry.stamp.load(Ordering::Relaxed) == complete).then_some(words)
    }
}
