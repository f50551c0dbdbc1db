//! `dlm-prep push` against a hub on the loopback interface that puts the files together from what
//! was sent and checks each commit: whole, private, one commit; again after a cut; nothing where
//! nothing is missing; and what must be refused.

use dlm_test_support::push_hub::{PushFaults, PushHub, Repo, TOKEN};
use dlm_test_support::sample;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ID: &str = "me/packed";
const REPO: &str = "datasets/me/packed";

struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    /// A packed dataset in `data`.
    fn new() -> Ground {
        let ground = Ground { dir: tempfile::tempdir().unwrap() };
        let done = Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
            .args(["--engine", "fast", "--seq-len", "512", "--max-rows", "3000"])
            .args(["--eval-fraction", "0.05", "--input"])
            .arg(sample("train.parquet"))
            .arg("--tokenizer")
            .arg(sample("tokenizer"))
            .arg("--out")
            .arg(ground.data())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", said(&done));
        ground
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, hub: &PushHub, arguments: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
        c.arg("push").arg(self.data()).args(arguments);
        c.env("HF_ENDPOINT", &hub.url)
            .env("HF_HOME", self.dir.path().join("home"))
            .env("HF_TOKEN", TOKEN)
            .env("DLM_HUB_PAUSE_MS", "1")
            .env("DLM_HUB_PATIENCE_MS", "20000")
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .env("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1");
        for key in ["HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy"] {
            c.env_remove(key);
        }
        c
    }

    fn push(&self, hub: &PushHub, more: &[&str]) -> Output {
        let arguments: Vec<&str> = [ID].iter().chain(more).copied().collect();
        let done = self.command(hub, &arguments).output().unwrap();
        assert!(!said(&done).contains(TOKEN), "{}", said(&done));
        assert!(!said(&done).contains("panicked"), "{}", said(&done));
        done
    }
}

fn said(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// The files below a folder.
fn files_below(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// The repository holds the folder's files and, of its own, the hub's first one.
fn same(repo: &Repo, data: &Path) {
    let mut there = repo.files.clone();
    assert!(there.remove(".gitattributes").is_some());
    let here = files_below(data);
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&here), names(&there));
    assert!(here == there);
}

#[test]
fn whole_and_in_one_commit() {
    let (ground, hub) = (Ground::new(), PushHub::start(PushFaults::default()));
    let done = ground.push(&hub, &[]);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("visible to its owner only"), "{}", said(&done));
    assert!(said(&done).contains("every file checked"), "{}", said(&done));
    let repo = hub.repo(REPO).unwrap();
    assert!(repo.private && repo.commits.len() == 2, "{:?}", repo.commits);
    same(&repo, &ground.data());
    assert!(repo.files.keys().any(|f| f.starts_with("train-")));
    assert!(
        repo.files.contains_key("README.md") && repo.files.contains_key("tokenizer/tokenizer.json")
    );
    assert!(hub.held().wrong.is_empty(), "{:?}", hub.held().wrong);
    // Nothing is written beside the cache of the storage's client.
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|n| n.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(ground.dir.path()), ["data", "home"]);
    assert_eq!(names(&ground.dir.path().join("home")), ["xet"]);
    // The folder is still a dataset.
    let mut verify = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    assert!(verify.arg("verify").arg(ground.data()).status().unwrap().success());

    // Again: nothing is sent, and there is no commit.
    let asked = hub.held().asked.len();
    let again = ground.push(&hub, &[]);
    assert!(again.status.success(), "{}", said(&again));
    assert!(said(&again).contains("were there already"), "{}", said(&again));
    assert!(hub.held().asked[asked..].iter().all(|a| a.starts_with("GET ")));
    assert_eq!(hub.repo(REPO).unwrap().commits.len(), 2);

    // A changed card, and a data file of an earlier push that this one does not have.
    std::fs::write(ground.data().join("README.md"), "# Mine\n").unwrap();
    {
        let mut held = hub.held();
        let files = &mut held.repos.get_mut(REPO).unwrap().files;
        files.insert("train-00099.arrow".to_string(), b"old".to_vec());
        files.insert("notes.txt".to_string(), b"somebody's".to_vec());
    }
    let bytes = hub.held().xorb_bytes;
    let third = ground.push(&hub, &["--public"]);
    assert!(third.status.success(), "{}", said(&third));
    assert!(said(&third).contains("kept       README.md"), "{}", said(&third));
    assert!(said(&third).contains("1 files sent"), "{}", said(&third));
    let repo = hub.repo(REPO).unwrap();
    assert_eq!(repo.files["README.md"], b"# Mine\n");
    assert!(!repo.files.contains_key("train-00099.arrow") && repo.files.contains_key("notes.txt"));
    // A repository that exists keeps its visibility.
    assert!(repo.private && repo.commits.len() == 3);
    assert_eq!(bytes, hub.held().xorb_bytes, "no large file is sent again");
}

/// A push that the storage cuts off commits nothing; repeated, it is whole.
#[test]
fn again_after_a_cut() {
    let ground = Ground::new();
    let hub = PushHub::start(PushFaults { xorbs_before_a_cut: Some(0), ..Default::default() });
    let cut = ground.push(&hub, &["--public"]);
    assert_eq!(cut.status.code(), Some(1), "{}", said(&cut));
    assert!(said(&cut).contains("nothing was committed, push again"), "{}", said(&cut));
    let repo = hub.repo(REPO).unwrap();
    assert!(!repo.private && repo.commits.len() == 1 && repo.files.len() == 1);
    // Cut off again, when the content has been sent, and then whole: only what is missing is sent.
    {
        let mut held = hub.held();
        held.faults.xorbs_before_a_cut = None;
        held.faults.refuses_shards = true;
    }
    assert_eq!(ground.push(&hub, &[]).status.code(), Some(1));
    assert_eq!(hub.repo(REPO).unwrap().commits.len(), 1);
    let bytes = hub.held().xorb_bytes;
    assert!(bytes > 0);
    hub.held().faults.refuses_shards = false;
    let done = ground.push(&hub, &[]);
    assert!(done.status.success(), "{}", said(&done));
    // what hf-xet has noted as sent is not sent again; a cut may come before it noted that
    let again = hub.held().xorb_bytes - bytes;
    assert!(again == 0 || again == bytes, "{again} bytes more than {bytes}");
    same(&hub.repo(REPO).unwrap(), &ground.data());
    assert_eq!(hub.repo(REPO).unwrap().commits.len(), 2);
    let wrong = hub.held().wrong.clone();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_is_refused() {
    let ground = Ground::new();
    let hub = PushHub::start(PushFaults::default());
    let with = |hub: &PushHub, id: &str, key: &str, value: &str| {
        let done = ground.command(hub, &[id]).env(key, value).output().unwrap();
        assert!(!done.status.success() && !said(&done).contains("panicked"), "{}", said(&done));
        assert!(!said(&done).contains(TOKEN), "{}", said(&done));
        said(&done)
    };
    let wrong = with(&hub, ID, "HF_TOKEN", "hf_someothertoken");
    assert!(wrong.contains("401") && wrong.contains("HF_TOKEN"), "{wrong}");
    assert!(!wrong.contains("hf_someothertoken"), "{wrong}");
    let none = with(&hub, ID, "HF_TOKEN", "");
    assert!(none.contains("needs a token"), "{none}");
    let offline = with(&hub, ID, "HF_HUB_OFFLINE", "1");
    assert!(offline.contains("HF_HUB_OFFLINE"), "{offline}");
    let theirs = with(&hub, "theirs/packed", "LANG", "C");
    assert!(theirs.contains("403") && theirs.contains("may not write"), "{theirs}");
    for id in ["packed", "a/b/c", "../x", "a b/c", "hf://a/b", ""] {
        let id_said = with(&hub, id, "LANG", "C");
        assert!(id_said.contains("ORG/NAME"), "{id}: {id_said}");
    }
    assert!(hub.held().repos.is_empty());

    // The other server would note a request with this token as wrong.
    hub.held().faults.redirects_to = Some(format!("{}/steal", hub.storage));
    let redirected = with(&hub, ID, "LANG", "C");
    assert!(redirected.contains("redirects elsewhere"), "{redirected}");
    hub.held().faults.redirects_to = None;
    assert!(hub.held().wrong.is_empty() && !hub.held().asked.iter().any(|a| a.contains("steal")));

    // What a hub says is shown without the token, addresses' queries and control characters.
    let says = format!("no {TOKEN} at https://cas/x?X-Amz-Signature=abc \u{1b}[31m");
    hub.held().faults.says = Some(says);
    let loud = with(&hub, "theirs/packed", "LANG", "C");
    assert!(loud.contains("https://cas/x") && !loud.contains("Amz"), "{loud}");
    assert!(!loud.contains('\u{1b}'), "{loud}");

    for (faults, says) in [
        (PushFaults { moves: true, ..Default::default() }, "somebody else committed"),
        (PushFaults { loses_commits: true, ..Default::default() }, "after the push"),
        (
            PushFaults { storage: Some("local:///tmp/x".to_string()), ..Default::default() },
            "no http or https",
        ),
        (
            PushFaults {
                storage: Some("http://169.254.169.254".to_string()),
                ..Default::default()
            },
            "own network",
        ),
        (PushFaults { transfer: Some("basic"), ..Default::default() }, "by xet"),
    ] {
        let hub = PushHub::start(faults.clone());
        let told = with(&hub, ID, "LANG", "C");
        assert!(told.contains(says), "{faults:?}: {told}");
        let repo = hub.repo(REPO).unwrap();
        assert_eq!(repo.files.len(), 1, "{faults:?}");
    }
}

/// Files that change while they are pushed: nothing is committed.
#[test]
fn a_file_that_changes() {
    let ground = Ground::new();
    // While the first xorb arrives: the stream's end is not the content that was hashed, or the
    // look behind the upload finds another length.
    let hub = PushHub::start(PushFaults::default());
    let card = ground.data().join("README.md");
    let changed = card.clone();
    hub.held().on_xorb = Some(Box::new(move || std::fs::write(&changed, "other").unwrap()));
    let done = ground.push(&hub, &[]);
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    assert!(said(&done).contains("changed while it was pushed"), "{}", said(&done));
    assert_eq!(hub.repo(REPO).unwrap().commits.len(), 1);

    // A data file that is not what the manifest says is not pushed at all.
    std::fs::remove_file(card).unwrap();
    let data = ground.data().join("train-00000.arrow");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let asked = hub.held().asked.len();
    let done = ground.push(&hub, &[]);
    assert!(said(&done).contains("not what manifest.json says"), "{}", said(&done));
    assert_eq!(hub.held().asked.len(), asked);
}

/// The card alone, which needs no hub.
#[test]
fn the_card_alone() {
    let (ground, hub) = (Ground::new(), PushHub::start(PushFaults::default()));
    let done = ground.command(&hub, &["--card"]).env_remove("HF_TOKEN").output().unwrap();
    assert!(done.status.success() && said(&done).contains("wrote"), "{}", said(&done));
    let card = std::fs::read_to_string(ground.data().join("README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("## Mixture"), "{card}");
    assert!(hub.held().asked.is_empty());
}
