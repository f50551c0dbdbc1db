//! Threads that work together through many short parallel phases, for passes over few tokens.
//!
//! A forward pass over one token has five parallel phases a layer, each of some ten microseconds:
//! as long as waking a sleeping thread takes. The helpers of a [`Team`] are therefore woken once
//! for the whole pass, and look for the next phase's tasks without sleeping. No one waits for a
//! helper that has not come: the thread that opens a phase works on its tasks itself, and waits for
//! those alone that a helper has begun. So phases of several teams in one pool cannot block each
//! other, and results do not depend on the number of threads.
#![allow(unsafe_code, reason = "a phase lends its closure and its buffer to the helpers")]

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Tasks of a phase at most, and the width of its two counters in [`Shared::word`].
const MOST_TASKS: usize = (1 << COUNT_BITS) - 1;
const COUNT_BITS: u32 = 24;
/// Looks at the phase counter before a waiting thread lets others run.
const PATIENCE: u32 = 4096;

/// A phase: what is called with the number of the worker and of the task.
type Phase<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What the threads of a team share.
struct Shared {
    /// Number of the phase, its tasks, and its next task, from high to low bits. A task is taken by
    /// changing the whole word, so only a task of the present phase can be taken.
    word: AtomicU64,
    /// Tasks of the present phase that have ended.
    done: AtomicUsize,
    phase: UnsafeCell<Option<Phase<'static>>>,
    closed: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: `phase` is written by the thread that opens phases alone, while no task is left to take
// and none runs; others read it between taking a task and ending it.
unsafe impl Sync for Shared {}

/// The calling thread and its helpers, for the length of [`Team::gather`].
pub(crate) struct Team<'a> {
    shared: &'a Shared,
    threads: usize,
    /// A team is used by the thread that gathered it alone: a phase cannot open another one.
    of_one_thread: PhantomData<Cell<()>>,
}

/// Ends the helpers' search, also when a panic passes by.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
    }
}

/// Counts a task as ended, also when it panics.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::Relaxed);
        }
        self.0.done.fetch_add(1, Ordering::AcqRel);
    }
}

/// Waits until all tasks of a phase have ended, also when a panic passes by: the phase's closure
/// must not go before.
struct Waiting<'a>(&'a Shared, usize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let (shared, tasks) = (self.0, self.1);
        // tasks that nobody took, after a panic, are never run
        while shared.take().is_some() {
            shared.done.fetch_add(1, Ordering::AcqRel);
        }
        let mut looks = 0;
        while shared.done.load(Ordering::Acquire) < tasks {
            pause(&mut looks);
        }
    }
}

fn pause(looks: &mut u32) {
    *looks += 1;
    if *looks < PATIENCE {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

impl Shared {
    /// The number of a task of the present phase that nobody else has.
    fn take(&self) -> Option<usize> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let next = word & MOST_TASKS as u64;
            let tasks = (word >> COUNT_BITS) & MOST_TASKS as u64;
            if next >= tasks {
                return None;
            }
            match self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(next as usize),
                Err(now) => word = now,
            }
        }
    }

    /// Takes and runs tasks until none is left.
    fn work(&self, worker: usize) -> bool {
        let mut any = false;
        while let Some(task) = self.take() {
            any = true;
            let ending = Ending(self);
            // SAFETY: the task was taken, so its phase is the present one and is neither changed
            // nor dropped before `ending` counts the task.
            let phase = unsafe { *self.phase.get() };
            if let Some(phase) = phase {
                phase(worker, task);
            }
            drop(ending);
        }
        any
    }

    fn help(&self, worker: usize) {
        let mut looks = 0;
        while !self.closed.load(Ordering::Acquire) {
            if self.work(worker) {
                looks = 0;
            }
            pause(&mut looks);
        }
    }
}

impl Team<'_> {
    /// Runs `body` with a team of the calling thread and the threads of the pool.
    pub(crate) fn gather<T>(body: impl FnOnce(&Team<'_>) -> T) -> T {
        let threads = rayon::current_num_threads().max(1);
        let shared = Shared {
            word: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            phase: UnsafeCell::new(None),
            closed: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        };
        let shared = &shared;
        if threads == 1 {
            return body(&Team { shared, threads, of_one_thread: PhantomData });
        }
        rayon::in_place_scope(|scope| {
            for worker in 1..threads {
                scope.spawn(move |_| shared.help(worker));
            }
            let _closing = Closing(shared);
            body(&Team { shared, threads, of_one_thread: PhantomData })
        })
    }

    /// Threads of the team at most.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Divides `out` into chunks of `len` and runs `task(worker, chunk number, chunk)` for each; no
    /// two run with the same worker number, below [`Team::threads`], at the same time.
    pub(crate) fn for_chunks<T: Send>(
        &self,
        out: &mut [T],
        len: usize,
        task: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        let len = len.max(1);
        let (whole, tasks) = (out.len(), out.len().div_ceil(len));
        if tasks <= 1 || self.threads == 1 {
            out.chunks_mut(len).enumerate().for_each(|(i, chunk)| task(0, i, chunk));
            return;
        }
        let start = Start(out.as_mut_ptr());
        self.run(tasks, &|worker, i| {
            let first = i * len;
            // SAFETY: i < tasks, so the chunk lies inside `out`, which this call borrows for as
            // long as tasks run; each i is taken once, and chunks do not overlap.
            let chunk = unsafe {
                std::slice::from_raw_parts_mut(start.get().add(first), len.min(whole - first))
            };
            task(worker, i, chunk);
        });
    }

    /// Runs a phase of two or more tasks.
    fn run(&self, tasks: usize, phase: Phase<'_>) {
        assert!(tasks <= MOST_TASKS, "{tasks} tasks in a phase");
        let shared = self.shared;
        // SAFETY: only the lifetime changes. `waiting` lets this call end, or a panic pass, only
        // when all tasks have ended; afterwards none can be taken, so the phase is not used again.
        let phase: Phase<'static> = unsafe { std::mem::transmute(phase) };
        // SAFETY: the phase before has ended, so no other thread reads it: see `impl Sync`.
        unsafe { *shared.phase.get() = Some(phase) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.word.load(Ordering::Relaxed) >> (2 * COUNT_BITS)).wrapping_add(1);
        let word = (number << (2 * COUNT_BITS)) | ((tasks as u64) << COUNT_BITS);
        let waiting = Waiting(shared, tasks);
        shared.word.store(word, Ordering::Release);
        shared.work(0);
        drop(waiting);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a helper of this phase panicked");
    }
}

/// The first element of a buffer whose chunks are worked on at the same time.
struct Start<T>(*mut T);

// SAFETY: it is a pointer; `for_chunks` alone makes slices of it, which do not overlap, and whose
// elements may be sent.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_worked_on_once() {
        let mut values = vec![0u32; 1000];
        Team::gather(|team| {
            let threads = team.threads();
            for round in 0..300u32 {
                for len in [1, 7, 64, 1000, 2000] {
                    team.for_chunks(&mut values, len, |worker, i, chunk| {
                        assert!(worker < threads);
                        for (at, v) in chunk.iter_mut().enumerate() {
                            *v += (i * len + at) as u32 + round;
                        }
                    });
                }
            }
        });
        let rounds: u32 = (0..300).sum();
        for (i, v) in values.iter().enumerate() {
            assert_eq!(*v, 5 * (300 * i as u32 + rounds));
        }
    }

    /// Teams of several callers, inside and outside the pool, and more of them than it has threads.
    #[test]
    fn teams_do_not_block_each_other() {
        use rayon::prelude::*;
        let sum = |_: usize| {
            let mut values = vec![1u64; 500];
            Team::gather(|team| {
                for _ in 0..50 {
                    team.for_chunks(&mut values, 3, |_, _, chunk| {
                        chunk.iter_mut().for_each(|v| *v += 1);
                    });
                }
            });
            values.iter().sum::<u64>()
        };
        std::thread::scope(|scope| {
            let outside: Vec<_> = (0..6).map(|i| scope.spawn(move || sum(i))).collect();
            let inside: Vec<u64> = (0..12).into_par_iter().map(sum).collect();
            assert!(inside.iter().all(|s| *s == 500 * 51));
            assert!(outside.into_iter().all(|t| t.join().unwrap() == 500 * 51));
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let caught = std::panic::catch_unwind(|| {
            Team::gather(|team| {
                let mut values = vec![0u8; 64];
                team.for_chunks(&mut values, 1, |_, i, _| assert!(i != 40, "task 40"));
            });
        });
        assert!(caught.is_err());
    }
}
