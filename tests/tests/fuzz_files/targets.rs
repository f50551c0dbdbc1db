//! What the fuzzer calls with a damaged file, and what has to hold afterwards.
//!
//! In: bytes and an empty folder. Out: whether they were read or refused, or what is wrong: every
//! file is either refused with a message or read so that what was made of it verifies.

use std::fs;
use std::path::Path;

use dlm_prep::{Prepare, verify};
use dlm_test_support::{families, sample};
use dlm_train::{DatasetOptions, Model, ModelOptions, Resume, convert, validate};

use crate::mutate::{self, Random};
use crate::seeds;

/// The kinds of files, with the name that tests use for them.
pub(crate) const NAMES: [&str; 9] = [
    "arrow",
    "packed",
    "parquet",
    "tokenizer",
    "config",
    "safetensors",
    "template",
    "manifest",
    "checkpoint",
];

/// How a case ended. An error of the fuzzer's own is a panic.
pub(crate) enum Ended {
    /// The file was used.
    Read,
    /// The file was refused, or every row of it was dropped, with a message.
    Refused(String),
}

/// One kind of file: valid examples and the calls that read it.
pub(crate) struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
}

const JSONL: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"turn  one  says\"}, {\"role\": \"assistant\", \"content\": \"word É \\u0000 7\"}]}\n{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"<|im_end|>\"}, {\"role\": \"assistant\", \"content\": \"a\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": {\"a\": [1, 2.5]}}}]}]}\n";

impl Target {
    /// The kind called `name`; `base` was filled by [`seeds::make`].
    pub(crate) fn new(name: &str, base: &Path) -> Target {
        let read = |path: &str| fs::read(base.join(path)).unwrap();
        let seeds = match name {
            "arrow" => seeds::arrow(),
            "packed" => vec![read("data/train-00000.arrow")],
            "parquet" => seeds::parquet(),
            "tokenizer" => seeds::tokenizers(),
            "config" => vec![read("run/config.json"), read("run/dlm_config.json")],
            "safetensors" => vec![read("run/model.safetensors")],
            "template" => seeds::templates(),
            "manifest" => vec![read("data/manifest.json")],
            "checkpoint" => {
                ["state.json", "config.json"].map(|n| read(&format!("{}/{n}", step(base)))).into()
            }
            _ => panic!("no kind of file is called {name}; there are {NAMES:?}"),
        };
        let name = NAMES.into_iter().find(|n| *n == name).expect("one of the names above");
        Target { name, seeds }
    }

    /// Why an example is refused; `None` where all are read.
    pub(crate) fn refused_seed(&self, base: &Path) -> Option<String> {
        self.seeds.iter().enumerate().find_map(|(k, seed)| {
            let place = base.join("whole");
            fs::create_dir(&place).unwrap();
            let ended = self.run(seed, base, &place);
            fs::remove_dir_all(&place).unwrap();
            match ended {
                Ended::Read => None,
                Ended::Refused(why) => Some(format!("example {k}: {why}")),
            }
        })
    }

    /// A damaged file.
    pub(crate) fn damaged(&self, random: &mut Random) -> Vec<u8> {
        let mut data = random.of(&self.seeds).clone();
        match self.name {
            "arrow" | "packed" | "parquet" => mutate::bytes(random, &mut data),
            "template" => mutate::template(random, &mut data),
            "safetensors" => safetensors(random, &mut data),
            _ => mutate::json(random, &mut data),
        }
        data
    }

    /// Reads `data` with everything that reads this kind of file. `place` is an empty folder.
    pub(crate) fn run(&self, data: &[u8], base: &Path, place: &Path) -> Ended {
        let prepare = |tokenizer: &Path, input: &Path| {
            Prepare::new(tokenizer)
                .input(input)
                .seq_len(128)
                .bd_size(8)
                .max_unsupervised(1.0)
                .workers(1)
        };
        let prepared = |prepare: Prepare| match prepare.run(place.join("out")) {
            Ok(prepared) if prepared.counts().rows_kept > 0 => {
                verify(place.join("out")).expect("what was prepared must verify");
                Ended::Read
            }
            Ok(_) => Ended::Refused("every row was dropped".into()),
            Err(error) => Ended::Refused(error.to_string()),
        };
        let write = |name: &str| {
            let path = place.join(name);
            fs::write(&path, data).unwrap();
            path
        };
        match self.name {
            "arrow" => prepared(prepare(&sample("tokenizer"), &write("input.arrow"))),
            "parquet" => prepared(prepare(&sample("tokenizer"), &write("input.parquet"))),
            "tokenizer" => {
                let folder = place.join("tokenizer");
                fs::create_dir(&folder).unwrap();
                fs::write(folder.join("tokenizer.json"), data).unwrap();
                let config = sample("tokenizer/tokenizer_config.json");
                fs::copy(config, folder.join("tokenizer_config.json")).unwrap();
                let input = place.join("input.jsonl");
                fs::write(&input, JSONL).unwrap();
                prepared(prepare(&folder, &input))
            }
            "template" => {
                let template = write("template.jinja");
                let input = place.join("input.jsonl");
                fs::write(&input, JSONL).unwrap();
                let prepare = prepare(&sample("tokenizer"), &input);
                prepared(prepare.template(template.to_str().unwrap()))
            }
            "packed" | "manifest" => self.dataset(data, base, place),
            "config" | "safetensors" => self.model(data, base, place),
            _ => self.checkpoint(data, base, place),
        }
    }

    /// A packed dataset with a damaged file or manifest: `verify`, and evaluation of a model on it.
    fn dataset(&self, data: &[u8], base: &Path, place: &Path) -> Ended {
        let folder = place.join("data");
        copy(&base.join("data"), &folder);
        if self.name == "packed" {
            // With the right hash and length, as after damage that happened before the file was
            // listed: what is inside has to be checked, too.
            fs::write(folder.join("train-00000.arrow"), data).unwrap();
            let mut manifest = families::read_json(&folder.join("manifest.json"));
            let hash = dlm_datasets::hash::sha256_file(&folder.join("train-00000.arrow")).unwrap();
            let file = &mut manifest["files"][0];
            assert_eq!(file["path"], "train-00000.arrow");
            file["sha256"] = hash.into();
            file["bytes"] = data.len().into();
            fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        } else {
            fs::write(folder.join("manifest.json"), data).unwrap();
        }
        let verified = verify(&folder);
        let options =
            DatasetOptions { device: "cpu".into(), rows: Some(4), ..DatasetOptions::new(&folder) };
        let validated = validate(base.join("run"), options);
        match (verified, validated) {
            (Ok(_), _) => Ended::Read,
            (Err(error), _) => Ended::Refused(error.to_string()),
        }
    }

    /// A model folder with a damaged config.json, dlm_config.json or model.safetensors: load it,
    /// complete a prompt.
    fn model(&self, data: &[u8], base: &Path, place: &Path) -> Ended {
        let folder = place.join("model");
        copy(&base.join("run"), &folder);
        let name = match self.name {
            "safetensors" => "model.safetensors",
            // dlm_config.json holds no model_type
            _ if String::from_utf8_lossy(data).contains("model_type") => "config.json",
            _ => "dlm_config.json",
        };
        fs::write(folder.join(name), data).unwrap();
        let options = ModelOptions { device: "cpu".into(), ..ModelOptions::default() };
        let limit = dlm_train::GenerateOptions { max_new_tokens: 2, ..Default::default() };
        let done = Model::load(&folder, &options)
            .and_then(|mut model| model.generate(&[dlm_train::Prompt::Ids(vec![5, 6])], &limit));
        match done {
            Ok(_) => Ended::Read,
            Err(error) => Ended::Refused(error.to_string()),
        }
    }

    /// A run whose newest checkpoint has a damaged state.json or config.json: resume it.
    fn checkpoint(&self, data: &[u8], base: &Path, place: &Path) -> Ended {
        let run = place.join("run");
        copy(&base.join("run"), &run);
        let is_state = String::from_utf8_lossy(data).contains("format_version");
        let name = if is_state { "state.json" } else { "config.json" };
        fs::write(place.join(step(base)).join(name), data).unwrap();
        let settings = seeds::conversion(base).resume(Resume::Must).set("train.max_steps", "3");
        match convert(&settings, base.join("data"), &run) {
            Ok(_) => Ended::Read,
            Err(error) => Ended::Refused(error.to_string()),
        }
    }
}

/// The newest checkpoint of the run, as a path below the folder that holds the run.
fn step(base: &Path) -> String {
    let latest = fs::read_to_string(base.join("run/checkpoints/latest")).unwrap();
    format!("run/checkpoints/{}", latest.trim())
}

/// Damages the header of a safetensors file as JSON, with its length made right; or any bytes.
fn safetensors(random: &mut Random, data: &mut Vec<u8>) {
    if random.once_in(3) {
        return mutate::bytes(random, data);
    }
    let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
    let mut header = data[8..8 + length].to_vec();
    mutate::json(random, &mut header);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(&data[8 + length..]);
    *data = file;
}

/// Copies a folder with everything in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
