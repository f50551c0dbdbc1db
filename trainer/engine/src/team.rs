//! Several engines, each on its GPU, that train one model: what they do together after their
//! passes.
//!
//! Every engine has all weights and all gradients, and the moments of its share. A step is: each
//! engine runs its micro-batches; all wait ([`Engine::wait`]); each adds up the gradients of its
//! share, its own first, then the others' in their order ([`Engine::add_gradients`]); all wait;
//! each updates its share ([`Engine::update`]); all wait; each fetches the other shares of the new
//! weights ([`Engine::fetch_weights`]). Copies go from GPU to GPU, over NVLink or PCIe, and through
//! host memory where GPUs cannot reach each other. Nothing but the driver is needed, and sums have
//! one order, so equal runs have equal bits.

use crate::device::PeerDevice;
use crate::engine::Engine;
use crate::error::Result;
use crate::options::Share;
use crate::program::launch;

/// Another engine of the team, as told to the threads of the others.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    device: PeerDevice,
    share: Share,
    /// Address of its gradients.
    gradients: u64,
    /// Address of its weights, fp32.
    weights: u64,
}

impl Engine {
    /// What the others need to know of this engine.
    ///
    /// # Errors
    /// When the engine was made for evaluation.
    pub fn as_peer(&self) -> Result<Peer> {
        let m = &self.model;
        Ok(Peer {
            device: m.device.as_peer(),
            share: m.options.share,
            gradients: m.gradient(0)?,
            weights: m.trained_weight(0),
        })
    }

    /// Lets this GPU read the memory of the others directly, where the machine can.
    ///
    /// # Errors
    /// What the driver says.
    pub fn reach(&self, peers: &[Peer]) -> Result<()> {
        self.others(peers).try_for_each(|peer| self.model.device.reach(peer.device))
    }

    fn others<'a>(&self, peers: &'a [Peer]) -> impl Iterator<Item = &'a Peer> + use<'a> {
        let own = self.model.options.share.rank;
        peers.iter().filter(move |peer| peer.share.rank != own)
    }

    /// Adds the others' gradients of this engine's share to its own; waits for the losses of its
    /// passes, and for the L2 norm of the gradients of its share. The others must have waited for
    /// their passes before, and must not touch their gradients until this returns.
    ///
    /// # Errors
    /// When a kernel or a copy failed.
    pub fn add_gradients(&mut self, peers: &[Peer]) -> Result<(Vec<f32>, f64)> {
        self.model.device.enter()?;
        let share = self.model.share();
        let room = self.model.options.share.staging_bytes(self.model.trained());
        let staging = self.staging.room(&self.model.device, room.max(256), "staging")?;
        let (m, each) = (&self.model, room / 4);
        for peer in self.others(peers) {
            for start in share.clone().step_by(each.max(1)) {
                let len = each.min(share.end - start);
                let from = peer.gradients + 4 * start as u64;
                m.device.copy_from(peer.device, staging, from, 4 * len)?;
                let (to, grid) = (m.gradient(start)?, m.grids.quads(len));
                launch!(m.program, "add_to", grid, to, staging, len as i64)?;
            }
        }
        self.dirty = true;
        self.finish_over(share)
    }

    /// Fetches the shares of the weights that the others have updated. They must have waited for
    /// their updates before.
    ///
    /// # Errors
    /// When a kernel or a copy failed.
    pub fn fetch_weights(&mut self, peers: &[Peer]) -> Result<()> {
        let m = &self.model;
        m.device.enter()?;
        for peer in self.others(peers) {
            let share = peer.share.range(m.trained());
            if share.is_empty() {
                continue;
            }
            let (to, from) = (m.trained_weight(share.start), peer.weights + 4 * share.start as u64);
            m.device.copy_from(peer.device, to, from, 4 * share.len())?;
            let copy = m.bf16_copy(share.start);
            if copy != 0 {
                let grid = m.grids.vectors(share.len());
                launch!(m.program, "cast_to_bf16", grid, to, copy, share.len() as i64)?;
            }
        }
        m.weights_changed();
        m.device.wait()
    }
}
