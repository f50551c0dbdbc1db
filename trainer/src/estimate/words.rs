//! An estimate in words.

use super::Estimate;

impl Estimate {
    /// The estimate for people, a line for each subject; `price` is that of the machine per hour.
    pub(crate) fn lines(&self, price: Option<f64>) -> Vec<String> {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        let mut lines = vec![format!(
            "{}: {:.2} M parameters ({}), rows of {} tokens, {} a step",
            self.model,
            self.parameters as f64 / 1e6,
            self.shapes,
            self.seq_len,
            self.batch_rows
        )];
        lines.push(match (self.fits, self.micro_batch_rows, self.gpu_bytes) {
            (Some(fits), Some(rows), Some(free)) => format!(
                "memory: {} {} ({:.0} GiB free): {:.1} GiB for weights, gradients, optimizer and libraries, {:.1} GiB at most for activations of {rows} rows a pass",
                match (fits, self.narrowly) {
                    (true, false) => "fits",
                    (true, true) => "fits narrowly",
                    (false, _) => "does NOT fit",
                },
                self.gpu,
                gib(free),
                gib(self.fixed_bytes.unwrap_or_default()),
                gib(self.activation_bytes.unwrap_or_default())
            ),
            (None, Some(rows), Some(free)) => format!(
                "memory: not counted where Burn computes; {rows} rows a pass are expected to fit {} ({:.0} GiB free)",
                self.gpu,
                gib(free)
            ),
            _ => format!(
                "memory: that of {} is not known here; --gpu-memory GIB says it",
                self.gpu
            ),
        });
        let ours = self.fixed_bytes.zip(self.activation_bytes).map(|(fixed, more)| fixed + more);
        if let (Some(ours), Some(all)) = (ours, self.full_bytes) {
            lines.push(format!(
                "adapters: {:.2} M of these parameters are trained, the rest is frozen; that is {:.0} % of the {:.1} GiB that training all of them takes with as many rows a pass",
                self.trained_parameters as f64 / 1e6,
                100.0 * ours as f64 / all as f64,
                gib(all)
            ));
        }
        lines.push(match self.tokens_per_s {
            Some(rate) => format!("speed: {rate:.0} source tokens/s, {}", self.measured),
            None => format!("speed: {}", self.measured),
        });
        if let Some(hours) = self.hours {
            let cost = price.map_or_else(
                || "; --price-per-hour gives the price".to_string(),
                |price| format!(", {:.2} at {price} an hour for the machine", hours * price),
            );
            lines.push(format!(
                "time: {hours:.1} hours for {} tokens, without setting up, evaluations and checkpoints{cost}",
                self.total_tokens
            ));
        }
        if self.gpus > self.gpus_used {
            lines.push(format!(
                "GPUs: {} of {} are used (Muon and train.engine=burn take one, and each needs a row of train.batch_rows)",
                self.gpus_used, self.gpus
            ));
        }
        lines.push(format!(
            "disk: {:.0} GB ({} checkpoints of {:.1} GB at most, source and exported folder), and the dataset",
            self.disk_bytes as f64 / 1e9,
            self.checkpoints,
            self.checkpoint_bytes as f64 / 1e9
        ));
        lines
    }

    /// Why a run would fail, where that is certain.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let mut ways = vec!["train.activation_checkpointing=layer"];
        if self.gpu == "H100" {
            ways.insert(0, "--gpu H200");
        }
        if self.trained_parameters == self.parameters {
            ways.push("adapters (conversion.lora={rank: 16})");
        }
        let advice = format!("take {} or a smaller model", ways.join(", "));
        (self.fits == Some(false)).then(|| {
            format!(
                "{} does not fit {} with {} rows a pass: {advice}",
                self.model,
                self.gpu,
                self.micro_batch_rows.unwrap_or(1)
            )
        })
    }

    /// Disk of a machine for this run, GB: with room for the system and a dataset, in steps of 50.
    pub(crate) fn disk_gb(&self) -> u64 {
        let gb = (self.disk_bytes as f64 / 1e9).ceil() as u64 + 40;
        gb.next_multiple_of(50)
    }
}
