//! The engine of a build without the feature `native`: there is none.

use super::{KernelMs, NativeOptions};
use crate::attention::Tile;
use crate::diffusion::{Batch, Losses, Scored};
use crate::error::{Error, Result};
use crate::kernels::AdamwStep;
use crate::model::{Decoder, Gradients, Weights};
use crate::optim::State;

pub(crate) fn free_memory(_index: usize) -> Option<usize> {
    None
}

pub(crate) fn memory_need(
    _decoder: &Decoder,
    _options: NativeOptions,
    _tokens: usize,
    _targets: usize,
) -> (usize, usize) {
    (0, 0)
}

/// Has no values.
pub(crate) enum Native {}

impl Native {
    pub(crate) fn open(_index: usize, _decoder: &Decoder, _options: NativeOptions) -> Result<Self> {
        Err(Error::Device("this dlm-train was built without the native engine".into()))
    }

    pub(crate) fn open_team(
        _indices: &[usize],
        _decoder: &Decoder,
        _options: NativeOptions,
    ) -> Result<Self> {
        Err(Error::Device("this dlm-train was built without the native engine".into()))
    }

    pub(crate) fn set_weights(&mut self, _weights: &Weights) -> Result<()> {
        match *self {}
    }

    pub(crate) fn draw_weights(&mut self, _std: f32, _seed: u64) -> Result<()> {
        match *self {}
    }

    pub(crate) fn set_state(&mut self, _state: &[State]) -> Result<()> {
        match *self {}
    }

    pub(crate) fn weights(&self) -> Result<Weights> {
        match *self {}
    }

    pub(crate) fn gradients(&self) -> Result<Gradients> {
        match *self {}
    }

    pub(crate) fn state(&self) -> Result<Vec<State>> {
        match *self {}
    }

    pub(crate) fn set_quantization(&mut self, _lambda: f64) {
        match *self {}
    }

    pub(crate) fn clear_gradients(&mut self) -> Result<()> {
        match *self {}
    }

    pub(crate) fn pass(&mut self, _batch: &Batch, _scale: f64) -> Result<()> {
        match *self {}
    }

    pub(crate) fn finish(&mut self) -> Result<(Losses, f64)> {
        match *self {}
    }

    pub(crate) fn loss_sum(&mut self, _batch: &Batch) -> Result<f64> {
        match *self {}
    }

    pub(crate) fn losses(&mut self, _batch: &Batch) -> Result<Losses> {
        match *self {}
    }

    pub(crate) fn scored(&mut self, _batch: &Batch, _never: i64) -> Result<Scored> {
        match *self {}
    }

    pub(crate) fn open_cache(&mut self, _rows: usize, _positions: usize, _: bool) -> Result<()> {
        match *self {}
    }

    pub(crate) fn run_cached(
        &mut self,
        _ids: &[i64],
        _placed: (Vec<i32>, Vec<i32>, Vec<Tile>),
    ) -> Result<()> {
        match *self {}
    }

    pub(crate) fn run_gated(
        &mut self,
        _ids: &[i64],
        _placed: (Vec<i32>, Vec<i32>, Vec<Tile>),
        _masks: &[bool],
    ) -> Result<()> {
        match *self {}
    }

    pub(crate) fn predict(
        &mut self,
        _at: &[usize],
        _never: Option<i64>,
    ) -> Result<Vec<(i64, f32)>> {
        match *self {}
    }

    pub(crate) fn cached_logits(&mut self, _at: &[usize]) -> Result<Vec<f32>> {
        match *self {}
    }

    pub(crate) fn logits(&mut self, _batch: &Batch) -> Result<Vec<f32>> {
        match *self {}
    }

    pub(crate) fn update(&mut self, _step: AdamwStep) -> Result<()> {
        match *self {}
    }

    pub(crate) fn memory_in_use(&self) -> Result<usize> {
        match *self {}
    }

    pub(crate) fn take_launches(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn time_kernels(&self, _on: bool) {
        match *self {}
    }

    pub(crate) fn take_times(&self) -> Result<Vec<KernelMs>> {
        match *self {}
    }
}
