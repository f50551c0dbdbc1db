//! Writing, mapping and comparing rows, and every kind of damage to the folder refused with a clear
//! error.

use dlm_datasets::manifest::Manifest;
use dlm_datasets::manifest::{Alignment, Padding};
use dlm_datasets::writer::{DatasetWriter, DocumentTokens, LossRun, ShardWriter};
use dlm_datasets::{Dataset, Document, Error, Split, verify};
use proptest::prelude::*;
use std::path::Path;

const S: usize = 64;
const D: usize = 16;
const MASK: i32 = 99;
const PAD: i32 = 98;
const EOS: i32 = 97;

type Packed = (Vec<i32>, Vec<i32>, Vec<Document>);

/// A row of documents with the given (prompt, response) lengths.
fn row(lengths: &[(usize, usize)]) -> Packed {
    let (mut ids, mut labels, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for &(prompt, response) in lengths {
        let start = ids.len();
        let n = (prompt + response).div_ceil(D) * D;
        if start + n > S {
            break;
        }
        for i in 0..prompt + response {
            let id = if i + 1 == prompt + response { EOS } else { (i % 90) as i32 };
            ids.push(id);
            labels.push(if i < prompt { -100 } else { id });
        }
        ids.resize(start + n, MASK);
        labels.resize(start + n, -100);
        documents.push(Document { start, length: n, source: 0 });
    }
    ids.resize(S, PAD);
    labels.resize(S, -100);
    (ids, labels, documents)
}

fn write(dir: &Path, train: &[Packed], eval: &[Packed]) -> Manifest {
    let mut w = DatasetWriter::create(dir, Manifest::new(S, D, 100, MASK, PAD, EOS)).unwrap();
    for (split, rows) in [(Split::Train, train), (Split::Eval, eval)] {
        for (a, b, c) in rows {
            w.push(split, a, b, c).unwrap();
        }
    }
    w.finish().unwrap()
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[row(&[(3, 5), (1, 20)]), row(&[(10, 30)])], &[row(&[(2, 2)])]);
    dir
}

/// Maximal runs of labels.
fn runs(labels: &[i32]) -> Vec<LossRun> {
    let mut out: Vec<LossRun> = Vec::new();
    for i in (0..labels.len()).filter(|&i| labels[i] != -100) {
        match out.last_mut() {
            Some(r) if r.1 == i as u32 => r.1 += 1,
            _ => out.push((i as u32, i as u32 + 1)),
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]
    /// Writing documents with runs of labels gives the same file as writing whole rows.
    #[test]
    fn by_documents_as_by_rows(rows in prop::collection::vec(prop::collection::vec((1usize..20, 1usize..20), 1..5), 1..300)) {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<Packed> = rows.iter().map(|r| row(r)).collect();
        let mut whole = ShardWriter::create(dir.path(), "a", Split::Train, S).unwrap();
        let mut pieces = ShardWriter::create(dir.path(), "b", Split::Train, S).unwrap();
        for (ids, labels, documents) in &rows {
            whole.push(ids, labels, documents).unwrap();
            let loss: Vec<_> = documents.iter().map(|d| runs(&labels[d.start..d.start + d.length])).collect();
            let documents = documents.iter().zip(&loss);
            let tokens = documents.map(|(d, loss)| DocumentTokens { input_ids: &ids[d.start..d.start + d.length], loss, source: d.source });
            let padding = pieces.push_documents(tokens, PAD).unwrap();
            prop_assert_eq!(padding, ids.iter().rev().take_while(|&&i| i == PAD).count());
        }
        let (a, b) = (whole.finish().unwrap(), pieces.finish().unwrap());
        prop_assert_eq!((a.rows, a.bytes, a.sha256), (b.rows, b.bytes, b.sha256));
    }

    /// Counts from runs equal counts from labels, for any ids and any padding.
    #[test]
    fn summaries_agree(
        tokens in prop::collection::vec((prop_oneof![Just(MASK), Just(PAD), Just(EOS), 0..90i32], any::<bool>()), 0..80), eos: bool, response: bool
    ) {
        let mut m = Manifest::new(S, D, 100, MASK, PAD, EOS);
        m.padding = if eos { Padding::Eos } else { Padding::Mask };
        m.alignment = if response { Alignment::Response } else { Alignment::Sample };
        let ids: Vec<i32> = tokens.iter().map(|t| t.0).collect();
        let labels: Vec<i32> = tokens.iter().map(|t| if t.1 { t.0 } else { -100 }).collect();
        prop_assert_eq!(verify::summarize_runs(&ids, &runs(&labels), &m), verify::summarize(&ids, &labels, &m));
    }

    #[test]
    fn what_is_written_is_read(rows in prop::collection::vec(prop::collection::vec((1usize..20, 1usize..20), 1..5), 1..30), repeat in 1usize..80) {
        let dir = tempfile::tempdir().unwrap();
        // `repeat` makes some cases longer than one record batch.
        let rows: Vec<Packed> = rows.iter().map(|r| row(r)).collect();
        let train: Vec<Packed> = (0..repeat).flat_map(|_| rows.clone()).collect();
        let m = write(dir.path(), &train, &rows);
        let ds = Dataset::open(dir.path()).unwrap();
        prop_assert!(ds.is_zero_copy());
        prop_assert_eq!(ds.manifest(), &m);
        for (split, want) in [(Split::Train, &train), (Split::Eval, &rows)] {
            prop_assert_eq!(ds.rows(split), want.len());
            for (i, (ids, labels, documents)) in want.iter().enumerate() {
                let got = ds.row(split, i).unwrap();
                prop_assert_eq!(got.input_ids, &ids[..]);
                prop_assert_eq!(got.labels, &labels[..]);
                prop_assert_eq!(&got.documents, documents);
            }
        }
        let report = verify::check_dataset(&ds).unwrap();
        prop_assert_eq!(report.train_rows, train.len());
        prop_assert!(ds.row(Split::Train, train.len()).is_err());
    }

    /// Any single change of an id, a label or a document either breaks an invariant or is one that
    /// the invariants allow (an id without a label); the check never panics.
    #[test]
    fn check_row_survives_anything(ids in prop::collection::vec(-2i32..101, 0..80), labels in prop::collection::vec(-101i32..101, 0..80),
        docs in prop::collection::vec((0usize..90, 0usize..90, 0usize..3), 0..4)) {
        let docs: Vec<Document> = docs.iter().map(|&(start, length, source)| Document { start, length, source }).collect();
        let _ = verify::check_row(&ids, &labels, &docs, &Manifest::new(S, D, 100, MASK, PAD, EOS));
    }
}

#[test]
fn documents_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = ShardWriter::create(dir.path(), "a", Split::Train, S).unwrap();
    let ids = [1; 2 * S];
    for (length, loss) in [(2 * S, (1, 2)), (D, (1, D as u32 + 1))] {
        let e = w
            .push_documents(
                [DocumentTokens { input_ids: &ids[..length], loss: &[loss], source: 0 }],
                PAD,
            )
            .unwrap_err();
        assert!(matches!(e, Error::WriteRow { .. }), "{e}");
    }
}

#[test]
fn broken_rows_are_named() {
    let m = Manifest::new(S, D, 100, MASK, PAD, EOS);
    let good = row(&[(3, 5), (1, 20)]);
    let refuse = |f: &dyn Fn(&mut Packed), word: &str| {
        let mut r = good.clone();
        f(&mut r);
        let e = verify::check_row(&r.0, &r.1, &r.2, &m).expect_err(word);
        assert!(e.contains(word), "{e:?} should mention {word:?}");
    };
    assert!(verify::check_row(&good.0, &good.1, &good.2, &m).is_ok());
    refuse(&|r| r.2[1].start = 20, "multiples");
    refuse(&|r| r.2[1].length = 0, "multiples");
    refuse(&|r| r.2[1].start = 32, "ends at 16");
    refuse(&|r| r.2[1].length = 64, "past the row");
    refuse(&|r| r.2[1].source = 7, "source 7");
    refuse(&|r| r.1[4] = 50, "neither -100");
    refuse(&|r| r.1[60] = PAD, "expected pad");
    refuse(&|r| r.0[60] = 1, "expected pad");
    refuse(&|r| r.0[1] = MASK, "outside the padding");
    refuse(&|r| r.0[1] = 100, "vocabulary");
    refuse(&|r| (0..16).for_each(|i| r.1[i] = -100), "no label");
    refuse(&|r| r.1[0] = r.0[0], "first token");
    refuse(
        &|r| {
            r.0[5] = MASK;
            r.1[5] = MASK
        },
        "supervised",
    );
}

#[test]
fn a_folder_without_manifest_is_no_dataset() {
    let dir = sample();
    std::fs::remove_file(dir.path().join("manifest.json")).unwrap();
    assert!(matches!(Dataset::open(dir.path()), Err(Error::NoManifest { .. })));
}

#[test]
fn damage_is_refused() {
    let open = |dir: &tempfile::TempDir| {
        Dataset::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let file = |dir: &tempfile::TempDir| dir.path().join("train-00000.arrow");

    let dir = sample();
    let bytes = std::fs::read(file(&dir)).unwrap();
    std::fs::write(file(&dir), &bytes[..bytes.len() - 100]).unwrap();
    assert!(open(&dir).contains("bytes, the manifest says"), "{}", open(&dir));

    let dir = sample();
    let text = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
    std::fs::write(
        dir.path().join("manifest.json"),
        text.replace("\"format_version\": 1", "\"format_version\": 9"),
    )
    .unwrap();
    assert!(open(&dir).contains("format_version is 9"));

    let dir = sample();
    std::fs::write(
        dir.path().join("manifest.json"),
        text.replace("train-00000.arrow", "../train-00000.arrow"),
    )
    .unwrap();
    assert!(open(&dir).contains("own folder"));

    let dir = sample();
    std::fs::write(
        dir.path().join("manifest.json"),
        text.replace("\"seq_len\": 64", "\"seq_len\": 128"),
    )
    .unwrap();
    assert!(open(&dir).contains("column 0"), "{}", open(&dir));

    let dir = sample();
    std::fs::write(dir.path().join("manifest.json"), text.replace("\"rows\": 2", "\"rows\": 3"))
        .unwrap();
    assert!(open(&dir).contains("2 rows, the manifest says 3"));

    // Same length, other content: only the hashes of `verify` detect it.
    let dir = sample();
    let mut changed = bytes.clone();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    std::fs::write(file(&dir), changed).unwrap();
    if let Ok(ds) = Dataset::open(dir.path()) {
        assert!(matches!(verify::check_dataset(&ds), Err(Error::FileHash { .. })));
    }
}

/// Every byte of a small file is flipped in turn: opening and reading may fail but must not panic.
#[test]
fn no_byte_makes_it_panic() {
    let dir = sample();
    let path = dir.path().join("eval-00000.arrow");
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        for bit in [if at % 2 == 0 { 0x01 } else { 0x80 }] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            std::fs::write(&path, &changed).unwrap();
            if let Ok(ds) = Dataset::open(dir.path()) {
                for row in ds.split(Split::Eval).iter().flatten() {
                    let _ =
                        verify::check_row(row.input_ids, row.labels, &row.documents, ds.manifest());
                }
            }
        }
    }
}

#[test]
fn totals_that_do_not_add_up_are_refused() {
    let dir = sample();
    let path = dir.path().join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut v: serde_json::Value = serde_json::from_str(&text).unwrap();
    v["counts"]["rows_read"] = 7.into();
    std::fs::write(&path, v.to_string()).unwrap();
    let e = verify::check_dataset(&Dataset::open(dir.path()).unwrap()).unwrap_err();
    assert!(e.to_string().contains("rows_kept + dropped"), "{e}");
}
