//! Data files on the local disk: which formats are read, and which files a list of paths stands
//! for.
//!
//! In: files and folders, config and split. Out: [`LocalFile`]s: a file as it is; of a folder the
//! data files below it that `selection.rs` chooses, sorted by path, and what was not read there.

use crate::error::{Error, Result};
use crate::input::card::Card;
use crate::input::not_read::NotRead;
use crate::input::selection::{FileSelection, Layout, Taken, choose};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Format of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileFormat {
    Parquet,
    /// One JSON object per line, or one array of objects; plain, gzip or zstd.
    Json,
    /// Arrow IPC, file or stream.
    Arrow,
}

impl FileFormat {
    /// The format that a file's name stands for; none if the file is not a data file.
    pub(crate) fn of(path: &Path) -> Option<FileFormat> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let bare = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        match bare.rsplit_once('.')?.1 {
            "parquet" if bare == name => Some(FileFormat::Parquet),
            "arrow" | "feather" if bare == name => Some(FileFormat::Arrow),
            "jsonl" | "json" | "ndjson" => Some(FileFormat::Json),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFile {
    pub path: PathBuf,
    /// Its name in the manifest: the path below the folder that was searched, else the file name;
    /// the whole path where two files would have the same name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Name of the file that holds a dataset's card.
pub(crate) const CARD: &str = "README.md";
/// The longest card that is read.
pub(crate) const CARD_BYTES: u64 = 16 << 20;
/// Files and folders below a folder, at most.
const MOST_ENTRIES: usize = 5_000_000;

/// The data files that `paths` stand for, in the order of `paths`, and what was taken of each
/// folder.
pub(crate) fn list_files(
    paths: &[PathBuf],
    selection: &FileSelection,
) -> Result<(Vec<LocalFile>, Vec<Taken>)> {
    let (mut out, mut folders): (Vec<LocalFile>, Vec<Taken>) = (Vec::new(), Vec::new());
    for a in paths {
        let meta = std::fs::metadata(a).map_err(Error::io("reading", a))?;
        if meta.is_dir() {
            let (files, taken) = folder_files(a, selection)?;
            out.extend(files);
            folders.push(taken);
        } else {
            if FileFormat::of(a).is_none() {
                let reason = "unknown file format; expected .parquet, .jsonl, .json, .ndjson (also .gz, .zst) or .arrow";
                return Err(Error::Usage(format!("{}: {reason}", a.display())));
            }
            if !meta.is_file() {
                let reason = "is a pipe, socket or device; files are read several times and from any place, so write it to a file first";
                return Err(Error::Usage(format!("{}: {reason}", a.display())));
            }
            let name = a.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            out.push(LocalFile { path: a.clone(), name, bytes: meta.len() });
        }
    }
    let named =
        selection.config.is_some() || !selection.splits.is_empty() || !selection.globs.is_empty();
    if named && folders.is_empty() {
        return Err(Error::Usage(
            "--config, --split and --files choose among the files of a folder or a dataset; each --input here is a file, which is read as it is".to_string(),
        ));
    }
    tell_apart(&mut out);
    Ok((out, folders))
}

/// Names files by their whole path where others have the same name.
fn tell_apart(files: &mut [LocalFile]) {
    let mut names: HashMap<&str, usize> = HashMap::new();
    files.iter().for_each(|f| *names.entry(f.name.as_str()).or_default() += 1);
    let twice: HashSet<String> =
        names.into_iter().filter(|n| n.1 > 1).map(|n| n.0.to_string()).collect();
    for file in files.iter_mut().filter(|f| twice.contains(&f.name)) {
        file.name = file.path.to_string_lossy().replace('\\', "/");
    }
}

/// The files that are read of a folder.
fn folder_files(dir: &Path, selection: &FileSelection) -> Result<(Vec<LocalFile>, Taken)> {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned());
    let place = name.unwrap_or_else(|| dir.display().to_string());
    let (files, not_read) = walk_folder(dir)?;
    let mut taken = Taken { place, not_read, ..Default::default() };
    let refuse = |reason: String| Error::Input { path: dir.display().to_string(), reason };
    if files.is_empty() {
        let others = match taken.not_read.is_empty() {
            true => String::new(),
            false => format!("; it holds {}", taken.not_read),
        };
        let reason = "no parquet, JSONL or Arrow file in this folder";
        return Err(Error::Usage(format!("{}: {reason}{others}", dir.display())));
    }
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    let card = match selection.globs.is_empty() {
        true => read_card(&dir.join(CARD)).map_err(refuse)?,
        false => None,
    };
    let chosen =
        choose(&names, Layout::Card(card.as_ref()), selection, &mut taken).map_err(refuse)?;
    if chosen.is_empty() {
        return Err(refuse(format!("none of its files is taken: {}", taken.not_read)));
    }
    for file in chosen.iter().map(|&k| &files[k]).filter(|f| f.bytes == 0) {
        taken.not_read.add("without content", &file.name);
    }
    let files = chosen.into_iter().map(|k| files[k].clone()).collect();
    Ok((files, taken))
}

/// All data files below a folder, sorted by path, and what else is there.
pub(crate) fn walk_folder(dir: &Path) -> Result<(Vec<LocalFile>, NotRead)> {
    let mut found = Found::default();
    let meta = std::fs::metadata(dir).map_err(Error::io("reading", dir))?;
    found.seen.insert(identity(&meta, 0));
    found.walk(dir, dir, 0)?;
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((found.files, found.not_read))
}

/// The card in a file; none if there is no such file, or it names no configs.
///
/// # Errors
/// Why it cannot be understood.
pub(crate) fn read_card(path: &Path) -> std::result::Result<Option<Card>, String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() <= CARD_BYTES => {}
        Ok(meta) if meta.is_file() => return Err(card_is_long(meta.len())),
        _ => return Ok(None),
    }
    let bytes = std::fs::read(path).map_err(|e| format!("{CARD} cannot be read: {e}"))?;
    parse_card(&bytes)
}

/// The card in the content of a README.md.
pub(crate) fn parse_card(bytes: &[u8]) -> std::result::Result<Option<Card>, String> {
    Card::parse(&String::from_utf8_lossy(bytes))
        .map_err(|e| format!("{CARD}: {e}; --files GLOB reads files without regard to it"))
}

pub(crate) fn card_is_long(bytes: u64) -> String {
    format!("{CARD} has {bytes} bytes, more than the {CARD_BYTES} that are read")
}

/// Whether a file has the name of a small JSON file that holds metadata and no rows.
pub(crate) fn is_metadata(path: &str) -> bool {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let known = [
        "dataset_infos.json",
        "dataset_info.json",
        "dataset_dict.json",
        "state.json",
        "config.json",
        "metadata.json",
        "manifest.json",
        "vocab.json",
        "added_tokens.json",
    ];
    known.contains(&name)
        || name.starts_with('.')
        || (name.ends_with(".json")
            && (name.starts_with("tokenizer") || name.starts_with("special_tokens")))
}

/// Why a file of a folder or a repository is no data file; none if it is one.
pub(crate) fn not_data(path: &str) -> Option<&'static str> {
    if FileFormat::of(Path::new(path)).is_none() {
        Some("of another format")
    } else if is_metadata(path) {
        Some("with metadata")
    } else {
        None
    }
}

/// What was found below a folder.
#[derive(Default)]
struct Found {
    files: Vec<LocalFile>,
    not_read: NotRead,
    entries: usize,
    /// Device and number of the folders that were read, which links can lead to again.
    seen: HashSet<(u64, u64)>,
}

impl Found {
    fn walk(&mut self, root: &Path, dir: &Path, depth: usize) -> Result<()> {
        let refuse = |reason: &str| Error::Usage(format!("{}: {reason}", dir.display()));
        if depth > 32 {
            return Err(refuse("more than 32 folders deep; give the folder that holds the files"));
        }
        let entries = std::fs::read_dir(dir).map_err(Error::io("listing", dir))?;
        let entries: std::io::Result<Vec<_>> = entries.collect();
        let mut entries = entries.map_err(Error::io("listing", dir))?;
        // Of a folder that links lead to, the first path by name counts.
        entries.sort_by_key(|e| e.file_name());
        self.entries += entries.len();
        if self.entries > MOST_ENTRIES {
            return Err(refuse("more than 5 million files below this folder"));
        }
        for entry in entries {
            let path = entry.path();
            let name =
                path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            let not_read = &mut self.not_read;
            if entry.file_name().to_string_lossy().starts_with(['.', '_']) {
                not_read.add("with a hidden name", &name);
                continue;
            }
            let meta = match std::fs::metadata(&path) {
                Ok(meta) => meta,
                Err(_) if entry.file_type().is_ok_and(|t| t.is_symlink()) => {
                    not_read.add("that are broken links", &name);
                    continue;
                }
                Err(e) => return Err(Error::io("reading", &path)(e)),
            };
            if meta.is_dir() {
                if self.seen.insert(identity(&meta, self.seen.len())) {
                    self.walk(root, &path, depth + 1)?;
                } else {
                    not_read.add("under a second path", &(name + "/"));
                }
            } else if let Some(why) = not_data(&name) {
                // The card is read, though not for rows.
                if name != CARD {
                    not_read.add(why, &name);
                }
            } else if !meta.is_file() {
                not_read.add("of another kind (pipe, socket, device)", &name);
            } else {
                self.files.push(LocalFile { path, name, bytes: meta.len() });
            }
        }
        Ok(())
    }
}

/// What tells a folder from others.
#[cfg(unix)]
fn identity(meta: &std::fs::Metadata, _count: usize) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino())
}

/// What tells a folder from others: nothing here, so that every folder counts.
#[cfg(not(unix))]
fn identity(_meta: &std::fs::Metadata, count: usize) -> (u64, u64) {
    (0, count as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        for (name, format) in [
            ("a.parquet", Some(FileFormat::Parquet)),
            ("a.JSONL.gz", Some(FileFormat::Json)),
            ("a.parquet.gz", None),
            ("a.txt", None),
            ("a.arrow", Some(FileFormat::Arrow)),
        ] {
            assert_eq!(FileFormat::of(Path::new(name)), format, "{name}");
        }
    }

    /// Links that lead back or to the same folder twice: every file once, and no endless walk.
    #[cfg(unix)]
    #[test]
    fn folders_are_read_once() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("a.jsonl"), "{}").unwrap();
        for name in ["l1", "l2", "l3"] {
            symlink(dir.path(), inner.join(name)).unwrap();
        }
        symlink(&inner, dir.path().join("twice")).unwrap();
        symlink(dir.path().join("nowhere"), dir.path().join("broken.jsonl")).unwrap();
        let (files, taken) =
            list_files(&[dir.path().to_path_buf()], &FileSelection::default()).unwrap();
        assert_eq!(files.iter().map(|f| &*f.name).collect::<Vec<_>>(), ["inner/a.jsonl"]);
        let left = taken[0].not_read.to_string();
        assert!(left.contains("broken.jsonl"), "{left}");
        assert!(left.contains("4 files under a second path (inner/l1/"), "{left}");
    }

    /// Steps in a square of the number of files would not end here.
    #[test]
    fn a_hundred_thousand_files() {
        let file = |k: usize| LocalFile {
            path: format!("{}/{k}.jsonl", k % 7).into(),
            name: format!("{}.jsonl", k / 2),
            bytes: 1,
        };
        let mut files: Vec<LocalFile> = (0..100_000).map(file).collect();
        tell_apart(&mut files);
        assert!(files.iter().all(|f| f.path == Path::new(&f.name)));
        let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
        let patterns: String = names.iter().take(15_000).map(|n| format!("\n  - {n}")).collect();
        let card = format!("---\nconfigs:\n- config_name: a\n  data_files:{patterns}\n---\n");
        let card = parse_card(card.as_bytes()).unwrap();
        for (layout, expected) in
            [(Layout::Card(None), 100_000), (Layout::Card(card.as_ref()), 15_000)]
        {
            let mut taken = Taken::default();
            let selection = FileSelection::default();
            let chosen = choose(&names, layout, &selection, &mut taken).unwrap();
            assert_eq!((chosen.len(), taken.files), (expected, expected));
        }
    }

    /// Files with the same name in several places get their whole path.
    #[test]
    fn equal_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "{}").unwrap();
            path
        };
        let paths = [path("a/x.jsonl"), path("b/x.jsonl"), path("b/y.jsonl")];
        let (files, _) = list_files(&paths, &FileSelection::default()).unwrap();
        assert_eq!(files[0].name, paths[0].to_string_lossy());
        assert_eq!((&*files[1].name, &*files[2].name), (&*paths[1].to_string_lossy(), "y.jsonl"));
    }
}
