//! A run whose checkpoints and export go to a bucket (`output.remote`).
//!
//! In: configuration, the run's local checkpoints. Out: the newest whole checkpoint of the bucket
//! on the local disk where it is newer than those there, and a thread that sends what is written.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::config::{Config, ExportWhich};
use crate::error::{Error, Result};
use crate::io::bucket_run::BucketRun;
use crate::io::checkpoint;
use crate::io::checkpoint_store::CheckpointStore;
use crate::io::uploads::{self, Uploads};
use crate::report::console::message;
use crate::train::resume::{Resume, RunOptions};

/// Seconds that an interrupted run goes on sending: a spot machine of Google has 30 in all.
const GRACE: u64 = 25;

/// The bucket of a run, before it trains.
pub(super) struct Remote {
    run: BucketRun,
    /// The newest step in the bucket.
    newest: Option<u64>,
}

impl Remote {
    /// The bucket of a run, if it has one.
    pub(super) fn of(cfg: &Config) -> Result<Option<Remote>> {
        let Some(remote) = &cfg.output.remote else { return Ok(None) };
        Ok(Some(Remote { run: BucketRun::open(remote)?, newest: None }))
    }

    /// Fetches the newest whole checkpoint where it is newer than the local ones, with the metrics
    /// before it. A bucket that does not answer ends the call: whether there is a newer checkpoint
    /// cannot be known then.
    pub(super) fn fetch(
        &mut self,
        cfg: &Config,
        store: &CheckpointStore,
        options: RunOptions,
    ) -> Result<()> {
        let address = self.run.address().clone();
        if options.resume == Resume::Never {
            if options.overwrite {
                return Ok(());
            }
            return match self.run.steps()?.into_iter().rev().find(|(_, listed)| *listed) {
                Some((step, _)) => Err(Error::Usage(format!(
                    "--resume never: {address}/checkpoint-step-{step} is there; add --overwrite to discard it, or choose another output.remote"
                ))),
                None => Ok(()),
            };
        }
        let local = match store.latest()? {
            Some(dir) => Some(checkpoint::state(&dir)?.step),
            None => None,
        };
        let fetched = self.run.fetch_newest(local, |step, fill| {
            message(format_args!("fetching the checkpoint of step {step} from {address}"));
            store.install(step, true, fill)
        })?;
        self.newest = fetched;
        if fetched.is_none() {
            return Ok(());
        }
        self.run.fetch_reports(&cfg.output.dir)?;
        let best = match store.latest()? {
            Some(dir) => checkpoint::state(&dir)?.best,
            None => None,
        };
        let best =
            best.filter(|best| cfg.export.which == ExportWhich::Best && Some(best.step) != fetched);
        if let Some(best) = best.filter(|best| store.best(*best).is_err()) {
            let mut install = |step, fill: &dyn Fn(&Path) -> Result<()>| {
                message(format_args!("fetching the best checkpoint, of step {step}"));
                store.install(step, false, fill)
            };
            self.run.fetch(best.step, &mut install)?;
        }
        Ok(())
    }

    /// Starts to send what is written from now on, and a local checkpoint that is not in the
    /// bucket. The configuration is sent at once, so that a bucket that cannot be written to is
    /// found before the first step.
    pub(super) fn start(
        self,
        cfg: &Config,
        store: &mut CheckpointStore,
        clear: bool,
    ) -> Result<()> {
        let dir = &cfg.output.dir;
        if clear {
            self.run.clear()?;
        }
        self.run.send_file(dir, "config.yaml")?;
        uploads::remove_leftovers(&dir.join("checkpoints"))?;
        let uploads = Uploads::start(self.run, dir, cfg.train.keep_checkpoints)?;
        if let Some(latest) = store.latest()? {
            let state = checkpoint::state(&latest)?;
            if Some(state.step) != self.newest {
                uploads.add(state.step, &latest, state.best.map(|best| best.step))?;
            }
        }
        store.uploads = Some(uploads);
        Ok(())
    }
}

/// How long an interrupted run goes on sending.
fn grace(cfg: &Config) -> Duration {
    Duration::from_secs(cfg.output.upload_grace.unwrap_or(GRACE))
}

/// Sends the exported folder, and waits for all that is not in the bucket yet.
pub(super) fn finish(cfg: &Config, store: &CheckpointStore, stop: &AtomicBool) -> Result<()> {
    match &store.uploads {
        Some(uploads) => uploads.finish(&cfg.output.dir, stop, grace(cfg)),
        None => Ok(()),
    }
}

/// Gives the last checkpoint of a session that ends early the time to reach the bucket.
pub(super) fn settle(cfg: &Config, store: &CheckpointStore, began: Instant) {
    if let Some(uploads) = &store.uploads {
        uploads.settle(began + grace(cfg));
    }
}
