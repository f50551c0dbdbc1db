//! Data parallelism in one process: the micro-batches of a step, split over workers.
//!
//! In: the micro-batches. Out: the sums of all workers' gradients. Micro-batch i of a step goes to
//! worker i mod N. Every worker keeps its own gradients while it computes; then the workers meet
//! once ([`Threads::reduce`]), and each adds up, in fp32 and in the order of the workers, the
//! gradients of the parameters that it owns, and later updates those with their optimizer state.
//! Order and ownership depend on nothing but shapes and N, so equal runs have equal bits; runs with
//! another N differ in the order of sums only. Checkpoints do not know N.

use std::any::Any;
use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::compute::DeviceKind;
use crate::compute::device::Team;
use crate::config::Optim;
use crate::error::{Error, Result};
use crate::kernels::cast::to_f32;
use crate::model::{Gradients, ParamSpec, Params, Weights};
use crate::optim::{Optimizer, Update, UpdateFactors};

/// Another worker has given up the step.
#[derive(Debug)]
struct Ended;

/// Workers that share the memory of this process.
struct Threads {
    handed_over: Vec<Mutex<Gradients>>,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Default)]
struct Meeting {
    arrived: usize,
    given_up: bool,
}

impl Threads {
    fn new(workers: usize) -> Self {
        Threads {
            handed_over: (0..workers).map(|_| Mutex::new(Gradients::new(0))).collect(),
            meeting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Hands over the gradients of worker `rank`, waits for those of all others, and returns the
    /// sums of the parameters that it owns (`owners`: a rank for each parameter).
    ///
    /// # Errors
    /// [`Ended`] where another worker gave up.
    fn reduce(
        &self,
        rank: usize,
        gradients: Gradients,
        owners: &[usize],
    ) -> std::result::Result<Gradients, Ended> {
        *self.handed_over[rank].lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        let mut meeting = self.meeting.lock().unwrap_or_else(PoisonError::into_inner);
        meeting.arrived += 1;
        self.changed.notify_all();
        while meeting.arrived < self.handed_over.len() && !meeting.given_up {
            meeting = self.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        if meeting.given_up {
            return Err(Ended);
        }
        drop(meeting);
        let mut sums = Gradients::new(owners.len());
        for (i, _) in owners.iter().enumerate().filter(|(_, owner)| **owner == rank) {
            for of_worker in &self.handed_over {
                let mut gradients = of_worker.lock().unwrap_or_else(PoisonError::into_inner);
                let gradient = gradients.0.get_mut(i).and_then(Option::take);
                drop(gradients);
                if let Some(gradient) = gradient {
                    sums.add(i, to_f32(gradient));
                }
            }
        }
        Ok(sums)
    }

    /// Tells the others that this worker does not come.
    fn give_up(&self) {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner).given_up = true;
        self.changed.notify_all();
    }
}

/// The workers of a run.
pub(super) struct Workers {
    count: usize,
    /// Threads of each worker, where there are several on the CPU.
    pools: Vec<ThreadPool>,
    /// The worker that owns each parameter.
    owners: Vec<usize>,
}

impl Workers {
    /// The workers of a team; a run without parallelism has one.
    ///
    /// # Errors
    /// [`Error::Usage`] where a step has fewer rows than workers.
    pub(super) fn new(team: &Team, params: &Params, batch_rows: usize) -> Result<Self> {
        let count = team.workers;
        if count > batch_rows {
            return Err(Error::Usage(format!(
                "--devices {count}, and a step has train.batch_rows={batch_rows} rows: every device needs one; raise train.batch_rows or take fewer devices"
            )));
        }
        let on_cpu = count > 1 && team.device.kind == DeviceKind::Cpu;
        let threads = (rayon::current_num_threads() / count).max(1);
        let pool = |rank: usize| {
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(move |i| format!("worker {rank}.{i}"))
                .build()
                .map_err(|e| Error::Device(format!("starting worker {rank} failed: {e}")))
        };
        let pools = if on_cpu { (0..count).map(pool).collect::<Result<_>>()? } else { vec![] };
        Ok(Workers { count, pools, owners: owners(params, count) })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` for each worker at the same time, with its rank and gradients to add to. Returns
    /// what the workers found, in the order of ranks, and the sums of their gradients.
    ///
    /// # Errors
    /// The error of the lowest rank that had one of its own; a panic goes on in the caller.
    pub(super) fn run<T: Send>(
        &self,
        work: impl Fn(usize, &mut Gradients) -> Result<T> + Sync,
    ) -> Result<(Vec<T>, Gradients)> {
        let threads = Threads::new(self.pools.len());
        let worker = |rank: usize| {
            let mut gradients = Gradients::new(self.owners.len());
            match catch_unwind(AssertUnwindSafe(|| work(rank, &mut gradients))) {
                Ok(Ok(found)) => match threads.reduce(rank, gradients, &self.owners) {
                    Ok(sums) => Share::Whole(found, sums),
                    Err(Ended) => Share::GivenUp,
                },
                Ok(Err(error)) => {
                    threads.give_up();
                    Share::Failed(error)
                }
                Err(panic) => {
                    threads.give_up();
                    Share::Panicked(panic)
                }
            }
        };
        let shares: Vec<Share<T>> = std::thread::scope(|scope| {
            let start = |(rank, pool)| {
                let worker = &worker;
                scope.spawn(move || ThreadPool::install(pool, || worker(rank)))
            };
            let running: Vec<_> = self.pools.iter().enumerate().map(start).collect();
            running.into_iter().map(|t| t.join().unwrap_or_else(Share::Panicked)).collect()
        });
        let mut found = Vec::with_capacity(shares.len());
        let mut sums = Gradients::new(self.owners.len());
        let mut error = None;
        for (rank, share) in shares.into_iter().enumerate() {
            match share {
                Share::Panicked(panic) => resume_unwind(panic),
                Share::Failed(of_worker) => error = error.or(Some(of_worker)),
                Share::GivenUp => {}
                Share::Whole(of_worker, mut own) => {
                    found.push(of_worker);
                    let owned = self.owners.iter().enumerate().filter(|(_, owner)| **owner == rank);
                    owned.for_each(|(i, _)| sums.0[i] = own.0[i].take());
                }
            }
        }
        error.map_or(Ok((found, sums)), Err)
    }

    /// One update of the weights; each worker does that of the parameters it owns.
    pub(super) fn update(
        &self,
        optimizer: &mut Optimizer,
        optim: &Optim,
        params: &Params,
        weights: &mut Weights,
        gradients: Gradients,
        factors: UpdateFactors,
    ) {
        let mut shares: Vec<Vec<Update>> = (0..self.count()).map(|_| Vec::new()).collect();
        for update in optimizer.updates(params, weights, gradients) {
            shares[self.owners[update.parameter]].push(update);
        }
        let apply = |share: Vec<Update>| share.into_iter().for_each(|u| u.apply(optim, factors));
        if self.pools.is_empty() {
            shares.into_iter().for_each(apply);
        } else {
            std::thread::scope(|scope| {
                for (pool, share) in self.pools.iter().zip(shares) {
                    scope.spawn(move || pool.install(|| apply(share)));
                }
            });
        }
        weights.set_mask_row(params);
    }
}

/// How the passes of one worker ended.
enum Share<T> {
    Whole(T, Gradients),
    Failed(Error),
    Panicked(Box<dyn Any + Send>),
    /// Another worker failed.
    GivenUp,
}

/// A worker for each tensor of the weights, so that all own about as many numbers: the largest
/// trained parameters first, each to the worker that has least.
fn owners(params: &Params, workers: usize) -> Vec<usize> {
    let sizes: Vec<usize> = params.trained_specs().iter().map(ParamSpec::numel).collect();
    let mut by_size: Vec<usize> = (0..sizes.len()).collect();
    by_size.sort_by_key(|i| (Reverse(sizes[*i]), *i));
    let (mut owned, mut owners) = (vec![0usize; workers.max(1)], vec![0; params.tensors()]);
    for i in by_size {
        let least = (0..owned.len()).min_by_key(|rank| (owned[*rank], *rank)).unwrap_or(0);
        owned[least] += sizes[i];
        owners[params.trained().start + i] = least;
    }
    owners
}

#[cfg(test)]
mod tests {
    use burn::prelude::{Device, Tensor};

    use super::*;
    use crate::model::ModelConfig;

    fn params() -> Params {
        let shapes = include_str!("../../../configs/model/sample.json");
        Params::new(&ModelConfig::from_json(serde_json::from_str(shapes).unwrap()).unwrap())
    }

    fn workers(count: usize) -> Workers {
        let team = crate::compute::device::choose_team("cpu", Some(count)).unwrap();
        Workers::new(&team, &params(), 64).unwrap()
    }

    #[test]
    fn every_parameter_has_an_owner_and_shares_are_alike() {
        let params = params();
        assert!(owners(&params, 1).iter().all(|owner| *owner == 0));
        let size = |i: usize| params.specs[i].shape.iter().product::<usize>();
        for count in [2, 3, 4, 7] {
            let owners = owners(&params, count);
            let share = |rank| -> usize {
                (0..owners.len()).filter(|i| owners[*i] == rank).map(size).sum()
            };
            let shares: Vec<usize> = (0..count).map(share).collect();
            assert_eq!(shares.iter().sum::<usize>(), params.numel());
            let largest = (0..owners.len()).map(size).max().unwrap();
            let (most, least) = (shares.iter().max().unwrap(), shares.iter().min().unwrap());
            assert!(most - least <= largest, "{shares:?}");
        }
    }

    #[test]
    fn sums_are_those_of_one_thread_in_the_order_of_ranks() {
        let device = Device::flex();
        let value = |rank: usize, i: usize| ((rank * 37 + i * 11) % 19) as f32 * 0.37 - 1e-3;
        let all = workers(3);
        let n = all.owners.len();
        for _ in 0..20 {
            let (ranks, sums) = all
                .run(|rank, gradients| {
                    for i in 0..n {
                        // parameter 3 has a part in one worker only, parameter 4 in none
                        if i != 4 && (i != 3 || rank == 1) {
                            gradients.add(i, Tensor::full([2, 3], value(rank, i), &device));
                        }
                    }
                    Ok(rank)
                })
                .unwrap();
            assert_eq!(ranks, [0, 1, 2]);
            for (i, sum) in sums.0.into_iter().enumerate() {
                let expected = match i {
                    4 => None,
                    3 => Some(value(1, 3)),
                    _ => Some(value(0, i) + value(1, i) + value(2, i)),
                };
                let sum = sum.map(|t| t.into_data().try_into_vec::<f32>().unwrap()[5]);
                assert_eq!(sum, expected, "parameter {i}");
            }
        }
    }

    #[test]
    fn one_failure_ends_the_step_of_all() {
        let all = workers(4);
        let failed = all.run(|rank, _| match rank {
            2 => Err::<(), _>(Error::Numeric("of two".into())),
            _ => Ok(()),
        });
        assert!(matches!(failed, Err(Error::Numeric(text)) if text == "of two"));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            all.run(|rank, _| if rank == 1 { panic!("out of memory") } else { Ok(()) })
        }));
        assert_eq!(
            panicked.err().and_then(|p| p.downcast_ref::<&str>().copied()),
            Some("out of memory")
        );
    }

    #[test]
    fn a_step_with_fewer_rows_than_workers_is_refused() {
        let team = crate::compute::device::choose_team("cpu", Some(9)).unwrap();
        let refused = Workers::new(&team, &params(), 8).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("train.batch_rows=8"), "{refused}");
    }
}
