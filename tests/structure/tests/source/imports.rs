//! The imports between the files of a crate.
//!
//! In: a crate's modules. Out: an [`Import`] for each path, in `use` declarations and in code, that
//! leads to an item of another file. `mod` declarations are none, and neither is a re-export
//! (`pub use`) of a name that the file itself does not use; an import through a re-export counts as
//! one of the file that defines the item.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

use crate::source::tree::{Module, ModulePath, Target, Tree};

/// A path in one file to an item of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    /// The importing file, relative to the repository.
    pub from: PathBuf,
    /// The file that defines the item.
    pub to: PathBuf,
    /// Line of the path.
    pub line: usize,
    /// The path as written.
    pub path: String,
}

/// All imports between files of the crate.
pub(crate) fn imports(tree: &Tree) -> Vec<Import> {
    let mut all = BTreeSet::new();
    for (at, module) in &tree.modules {
        let mut paths = Vec::new();
        let mut names = BTreeSet::new();
        for item in &module.items {
            scan(item.to_token_stream(), &mut paths, &mut names);
        }
        for u in &module.uses {
            if !u.reexport || names.contains(&u.name) {
                // An imported module is followed where a path begins with it.
                add(tree, at, module, &u.path, u.line, &mut all);
            }
        }
        for (path, line) in paths {
            add(tree, at, module, &path, line, &mut all);
        }
    }
    all.into_iter().collect()
}

fn add(
    tree: &Tree,
    at: &ModulePath,
    module: &Module,
    path: &[String],
    line: usize,
    all: &mut BTreeSet<Import>,
) {
    let Some(Target::Item(defined_in, _)) = tree.resolve(at, path) else { return };
    let Some(to) = tree.modules.get(&defined_in) else { return };
    if to.file != module.file {
        all.insert(Import {
            from: module.file.clone(),
            to: to.file.clone(),
            line,
            path: path.join("::"),
        });
    }
}

/// Collects the paths of two or more segments, and all names, of a token stream; `use` declarations
/// are skipped.
fn scan(tokens: TokenStream, paths: &mut Vec<(Vec<String>, usize)>, names: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let punct =
        |i: usize, c: char| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == c);
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i] {
            TokenTree::Group(g) => scan(g.stream(), paths, names),
            TokenTree::Ident(ident) if ident == "use" => {
                while i < tokens.len() && !punct(i, ';') {
                    i += 1;
                }
            }
            TokenTree::Ident(ident) => {
                let member =
                    i > 0 && (punct(i - 1, '.') || punct(i - 1, ':') && i > 1 && punct(i - 2, ':'));
                let mut path = vec![ident.to_string()];
                names.insert(ident.to_string());
                while punct(i + 1, ':')
                    && punct(i + 2, ':')
                    && let Some(TokenTree::Ident(next)) = tokens.get(i + 3)
                {
                    path.push(next.to_string());
                    i += 3;
                }
                if path.len() > 1 && !member {
                    paths.push((path, ident.span().start().line));
                }
            }
            _ => {}
        }
        i += 1;
    }
}

/// A shortest circle of imports through each file that is on one, each circle once.
pub(crate) fn circles(imports: &[Import]) -> Vec<Vec<Import>> {
    let mut edges: BTreeMap<&PathBuf, BTreeMap<&PathBuf, &Import>> = BTreeMap::new();
    for import in imports {
        edges.entry(&import.from).or_default().entry(&import.to).or_insert(import);
    }
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for start in edges.keys() {
        // Breadth first from `start` back to it.
        let mut came_by: BTreeMap<&PathBuf, &Import> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([*start]);
        while let Some(file) = queue.pop_front() {
            for (to, import) in edges.get(file).into_iter().flatten() {
                if !came_by.contains_key(to) {
                    came_by.insert(to, import);
                    queue.push_back(to);
                }
            }
        }
        let Some(mut import) = came_by.get(start).copied() else { continue };
        let mut circle = vec![import.clone()];
        while import.from != **start {
            import = came_by[&import.from];
            circle.push(import.clone());
        }
        circle.reverse();
        let files: BTreeSet<PathBuf> = circle.iter().map(|i| i.from.clone()).collect();
        if seen.insert(files) {
            circles.push(circle);
        }
    }
    circles
}
