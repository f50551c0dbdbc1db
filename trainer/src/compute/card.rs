//! NVIDIA cards as `nvidia-smi` lists them: name, free memory and MIG mode, and the peak FLOP/s of
//! the cards whose data sheets we know.
//!
//! In: a CUDA device index. Out: the [`Card`] behind it, or nothing where `nvidia-smi` is missing
//! or the index cannot be mapped to one card with certainty.

use super::dtype::ComputeDtype;

/// One line of `nvidia-smi --query-gpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Card {
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    uuid: String,
    /// Bytes that no process holds now.
    pub free_bytes: usize,
    /// Split into MIG instances: a device is then a part of the card, and the card's memory and
    /// peak say nothing about it.
    pub is_split: bool,
}

/// Dense peaks in TFLOP/s: (bf16 with fp32 accumulation, TF32). Names are compared exactly, because
/// variants that share a prefix differ (A10 and A10G, H100 PCIe and H100 NVL).
///
/// Source: NVIDIA data sheets and architecture white papers (Hopper, Ampere, Ada). Where a sheet
/// gives the value with sparsity only, it is halved.
const PEAKS: &[(&[&str], f64, f64)] = &[
    // SXM boards
    (&["H100 80GB HBM3", "H200", "GH200 480GB", "GH200 120GB"], 989.4, 494.7),
    (&["H100 PCIe"], 756.5, 378.0),
    (&["H100 NVL", "H200 NVL"], 835.5, 417.5),
    (
        &["A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100-PCIE-80GB", "A100 80GB PCIe"],
        312.0,
        156.0,
    ),
    (&["L40S"], 362.05, 183.0),
    (&["L4"], 121.0, 60.0),
    (&["A10"], 125.0, 62.5),
    (&["RTX A6000"], 154.8, 77.4),
    (&["GeForce RTX 4090"], 165.2, 82.6),
    (&["GeForce RTX 3090"], 71.0, 35.6),
];

impl Card {
    /// The card behind CUDA device `index` of this process.
    pub(super) fn of_device(index: usize) -> Option<Card> {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let order = std::env::var("CUDA_DEVICE_ORDER").ok();
        pick(&list()?, index, visible.as_deref(), order.as_deref())
    }

    /// Dense peak in FLOP/s at a compute dtype; none for cards that are not in the table. In fp32
    /// this is the TF32 peak: matrix products of fp32 tensors may run on tensor cores.
    pub(super) fn peak_flops(&self, dtype: ComputeDtype) -> Option<f64> {
        if self.is_split {
            return None;
        }
        let name = self.name.strip_prefix("NVIDIA ").unwrap_or(&self.name);
        let (_, bf16, tf32) = PEAKS.iter().find(|(names, ..)| names.contains(&name))?;
        let tflops = match dtype {
            ComputeDtype::Bf16 => bf16,
            ComputeDtype::Fp32 => tf32,
        };
        Some(tflops * 1e12)
    }
}

/// All cards of the machine in the order of the PCI bus.
fn list() -> Option<Vec<Card>> {
    let query = "--query-gpu=uuid,memory.free,mig.mode.current,name";
    let output = std::process::Command::new("nvidia-smi")
        .args([query, "--format=csv,noheader,nounits"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Lines of `uuid, free MiB, MIG mode, name`; lines without a number of MiB are dropped.
fn parse(listing: &str) -> Vec<Card> {
    let card = |line: &str| {
        let mut fields = line.splitn(4, ',').map(str::trim);
        let (uuid, free, mig, name) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Card {
            name: name.into(),
            uuid: uuid.into(),
            free_bytes: free.parse::<usize>().ok()? << 20,
            is_split: mig == "Enabled",
        })
    };
    listing.lines().filter_map(card).collect()
}

/// CUDA numbers the devices in `CUDA_VISIBLE_DEVICES` from 0. Unless `CUDA_DEVICE_ORDER` is
/// `PCI_BUS_ID` it numbers the fastest card first, which is the order of the bus only where all
/// cards are alike.
fn pick(cards: &[Card], index: usize, visible: Option<&str>, order: Option<&str>) -> Option<Card> {
    let by_bus = |number: usize| {
        let alike = cards.windows(2).all(|pair| pair[0].name == pair[1].name);
        let certain = alike || order == Some("PCI_BUS_ID");
        cards.get(number).filter(|_| certain).cloned()
    };
    let Some(visible) = visible else { return by_bus(index) };
    let entry = visible.split(',').nth(index)?.trim();
    match entry.parse::<usize>() {
        Ok(number) => by_bus(number),
        // a UUID may be shortened as long as it stays unique
        Err(_) => {
            let mut matching = cards
                .iter()
                .filter(|card| entry.len() > "GPU-".len() && card.uuid.starts_with(entry));
            matching.next().filter(|_| matching.next().is_none()).cloned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "GPU-aa11, 81000, Disabled, NVIDIA H100 80GB HBM3\n\
                       GPU-bb22, 24000, [N/A], NVIDIA GeForce RTX 4090\n";

    fn named(name: &str) -> Card {
        Card { name: name.into(), uuid: "GPU-0".into(), free_bytes: 0, is_split: false }
    }

    #[test]
    fn peak_belongs_to_the_card_and_the_dtype() {
        let peak = |name: &str, dtype| named(name).peak_flops(dtype);
        let (bf16, fp32) = (ComputeDtype::Bf16, ComputeDtype::Fp32);
        assert_eq!(peak("NVIDIA H100 80GB HBM3", bf16), Some(989.4e12));
        assert_eq!(peak("NVIDIA H100 80GB HBM3", fp32), Some(494.7e12));
        assert_eq!(peak("NVIDIA H100 PCIe", bf16), Some(756.5e12));
        assert_eq!(peak("NVIDIA A100-SXM4-80GB", bf16), Some(312e12));
        assert_eq!(peak("NVIDIA GeForce RTX 4090", fp32), Some(82.6e12));
        for unknown in ["NVIDIA A10G", "NVIDIA H100", "Tesla T4", "NVIDIA GeForce RTX 4090 D", ""] {
            assert_eq!(peak(unknown, bf16), None, "{unknown}");
        }
        let split = Card { is_split: true, ..named("NVIDIA H100 80GB HBM3") };
        assert_eq!(split.peak_flops(bf16), None, "a MIG instance is a part of the card");
    }

    #[test]
    fn listing_is_read_line_by_line() {
        let cards = parse(TWO);
        assert_eq!(cards.len(), 2);
        assert_eq!((cards[0].free_bytes, cards[0].is_split), (81000 << 20, false));
        assert_eq!(cards[1].name, "NVIDIA GeForce RTX 4090");
        assert!(parse("GPU-cc33, 40000, Enabled, NVIDIA A100-SXM4-40GB")[0].is_split);
        assert_eq!(parse("No devices were found\n"), []);
    }

    #[test]
    fn device_index_is_mapped_only_where_that_is_certain() {
        let different = parse(TWO);
        let alike = vec![named("NVIDIA H100 80GB HBM3"); 3];
        let name = |cards: &[Card], index, visible, order| {
            pick(cards, index, visible, order).map(|card| card.name)
        };
        let (h100, rtx) = ("NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090");
        assert_eq!(name(&alike, 2, None, None).as_deref(), Some(h100));
        assert_eq!(name(&alike, 3, None, None), None);
        assert_eq!(name(&different, 0, None, None), None, "CUDA may number the cards otherwise");
        assert_eq!(name(&different, 1, None, Some("PCI_BUS_ID")).as_deref(), Some(rtx));
        assert_eq!(name(&different, 0, Some("1,0"), Some("PCI_BUS_ID")).as_deref(), Some(rtx));
        assert_eq!(name(&different, 1, Some("GPU-bb,GPU-aa"), None).as_deref(), Some(h100));
        assert_eq!(name(&different, 0, Some("GPU-"), None), None);
        assert_eq!(name(&different, 0, Some(""), None), None);
    }
}
