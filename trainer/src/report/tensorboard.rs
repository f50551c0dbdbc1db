//! Scalars as TensorBoard event files, encoded here without TensorFlow or protobuf.
//!
//! In: step records. Out: `RUN/tensorboard/events.out.tfevents.<seconds>.<host>.<pid>.<step>`, one
//! file per session. Format: TFRecord framing (length, masked crc32c of the length, data, masked
//! crc32c of the data, all little-endian) around `tensorflow.Event` messages, of which only
//! wall_time (1), step (2), file_version (3), summary (5) and session_log (7) are used. A session
//! opens with a START mark at its first step, so that readers drop what an earlier, killed session
//! wrote after its checkpoint.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::report::step_record::StepRecord;
use dlm_datasets::fs;

/// An open event file.
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Start a file in `run_dir/tensorboard` for the steps after `last_step`.
    pub(crate) fn create(run_dir: &Path, last_step: u64) -> Result<Self> {
        let dir = run_dir.join("tensorboard");
        fs::create_dir(&dir)?;
        let host: String = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host
            .trim()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .collect();
        let host = if host.is_empty() { "localhost".to_string() } else { host };
        // readers read the files of a folder in the order of their names
        let path = dir.join(format!(
            "events.out.tfevents.{:010}.{host}.{}.{last_step}",
            wall_time() as u64,
            std::process::id()
        ));
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "creating", e))?;
        let mut events = EventFile { path, file };
        let mut opening = record(&event(wall_time(), 0, |m| bytes(m, 3, b"brain.Event:2")));
        opening.extend(record(&event(wall_time(), last_step + 1, |m| bytes(m, 7, &[0x08, 0x01]))));
        events.write(&opening)?;
        Ok(events)
    }

    /// Write the scalars of a step.
    pub(crate) fn step(&mut self, r: &StepRecord) -> Result<()> {
        let mut scalars = vec![
            ("train/loss", r.loss),
            ("train/lr", r.lr),
            ("train/grad_norm", r.grad_norm),
            ("train/tokens_per_second", r.tok_s),
            ("train/tokens", r.tokens as f64),
        ];
        if r.counted > 0 {
            scalars.push(("train/sure", r.sure as f64 / r.counted as f64));
        }
        scalars.extend(r.cross_entropy.map(|ce| ("train/cross_entropy", ce)));
        scalars.extend(r.divergence.map(|kl| ("train/divergence", kl)));
        if let Some(p) = &r.proposals {
            scalars.push(("train/accepted", p.share));
        }
        scalars.extend(r.eval_cross_entropy.map(|ce| ("eval/cross_entropy", ce)));
        scalars.extend(r.eval_divergence.map(|kl| ("eval/divergence", kl)));
        if let Some(p) = &r.eval_proposals {
            scalars.push(("eval/accepted", p.share));
            scalars.push(("eval/tokens_per_pass", p.tokens_per_pass));
        }
        scalars.extend(r.eval_loss.map(|l| ("eval/loss", l)));
        if let Some(a) = &r.eval_acceptance {
            scalars.push(("eval/acceptance", a.share));
            scalars.push(("eval/hidden_tokens", a.hidden as f64));
        }
        if let Some(d) = &r.eval_decode {
            scalars.push(("eval/tokens_per_forward", d.tokens_per_forward));
            scalars.push(("eval/decoded_tokens", d.tokens as f64));
        }
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut v = Vec::new();
            bytes(&mut v, 1, tag.as_bytes());
            // simple_value: field 2, 32 bits
            v.push(2 << 3 | 5);
            v.extend((value as f32).to_le_bytes());
            bytes(&mut summary, 1, &v);
        }
        self.write(&record(&event(wall_time(), r.step, |m| bytes(m, 5, &summary))))
    }

    /// Flush the file to disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, "flushing events", e))
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(data).map_err(|e| Error::io(&self.path, "writing events", e))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A `tensorflow.Event` of wall time, step, and the field that `add_field` appends.
fn event(time: f64, step: u64, add_field: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut m = vec![1 << 3 | 1];
    m.extend(time.to_le_bytes());
    m.push(2 << 3);
    varint(&mut m, step);
    add_field(&mut m);
    m
}

/// A length-delimited protobuf field.
fn bytes(m: &mut Vec<u8>, field: u8, content: &[u8]) {
    m.push(field << 3 | 2);
    varint(m, content.len() as u64);
    m.extend_from_slice(content);
}

fn varint(m: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        m.push(v as u8 | 0x80);
        v >>= 7;
    }
    m.push(v as u8);
}

/// TFRecord framing.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend(masked(data).to_le_bytes());
    out
}

/// The checksum as TFRecord stores it: rotated and offset, because the crc of data that contains
/// its own crc is a weak check.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with the Castagnoli polynomial, reflected. Bit by bit is fast enough: a step writes a few
/// hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    let byte = |crc: u32, b: &u8| {
        (0..8).fold(
            crc ^ u32::from(*b),
            |c, _| {
                if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 }
            },
        )
    };
    !data.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn numbers_are_varints() {
        for (v, expected) in
            [(0u64, vec![0u8]), (127, vec![127]), (128, vec![0x80, 1]), (300, vec![0xac, 2])]
        {
            let mut m = Vec::new();
            varint(&mut m, v);
            assert_eq!(m, expected);
        }
    }
}
