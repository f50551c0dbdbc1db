//! `wf`: launches, follows and cancels training runs on rented machines. The commands are in the
//! library (`cli/wf.rs`).

fn main() -> std::process::ExitCode {
    dlm_train::wf_main()
}
