//! A library crate as a tree of modules.
//!
//! In: a crate's `src/lib.rs`. Out: every module with its file, its items and the names that its
//! `use` declarations bring in; [`Tree::resolve`] finds the module that defines a path's item.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, ImplItem, Item, ItemUse, UseTree, Visibility};

/// Names from the crate's root to a module; empty for the root.
pub(crate) type ModulePath = Vec<String>;

/// A module of the crate.
pub(crate) struct Module {
    /// Its source file, relative to the repository.
    pub file: PathBuf,
    /// Its items, without test code, without `use` and `mod` declarations.
    pub items: Vec<Item>,
    /// Its `use` declarations, those inside functions included.
    pub uses: Vec<Use>,
    /// Its child modules and whether each is `pub`.
    pub children: Vec<(String, bool)>,
}

/// One name that a `use` declaration brings in.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    /// The path as written, for example `crate`, `model`, `Decoder`; `*` at the end of a glob.
    pub path: Vec<String>,
    /// The name it has here.
    pub name: String,
    /// Whether it is `pub`, so that users of the crate can name it.
    pub public: bool,
    /// Whether it has any visibility: it offers the name to other modules.
    pub reexport: bool,
    /// Line in the file.
    pub line: usize,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Target {
    /// A module of the crate.
    Module(ModulePath),
    /// An item (the name) in the module that defines it.
    Item(ModulePath, String),
}

/// A parsed crate.
pub(crate) struct Tree {
    /// Its name in paths, for example `dlm_prep`.
    pub name: String,
    /// Every module by its path, the crate's root under the empty one.
    pub modules: BTreeMap<ModulePath, Module>,
}

impl Tree {
    /// Parses the crate in `folder` (relative to the repository); the error names file and line.
    pub(crate) fn read(root: &Path, folder: &str, name: &str) -> Result<Tree, String> {
        let mut tree = Tree { name: name.to_string(), modules: BTreeMap::new() };
        let source = Path::new(folder).join("src");
        tree.read_file(root, source.join("lib.rs"), &source, Vec::new())?;
        Ok(tree)
    }

    fn read_file(
        &mut self,
        root: &Path,
        file: PathBuf,
        children_in: &Path,
        path: ModulePath,
    ) -> Result<(), String> {
        let text = std::fs::read_to_string(root.join(&file))
            .map_err(|e| format!("{}: {e}", file.display()))?;
        let parsed = syn::parse_file(&text)
            .map_err(|e| format!("{}:{}: {e}", file.display(), e.span().start().line))?;
        self.add(root, file, children_in, path, parsed.items)
    }

    fn add(
        &mut self,
        root: &Path,
        file: PathBuf,
        children_in: &Path,
        path: ModulePath,
        items: Vec<Item>,
    ) -> Result<(), String> {
        let mut module = Module {
            file: file.clone(),
            items: Vec::new(),
            uses: Vec::new(),
            children: Vec::new(),
        };
        for item in items {
            if is_test(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(child) => {
                    if child.attrs.iter().any(|a| a.path().is_ident("path")) {
                        return Err(format!("{}: #[path] on a module", file.display()));
                    }
                    let name = child.ident.to_string();
                    let public = matches!(child.vis, Visibility::Public(_));
                    module.children.push((name.clone(), public));
                    let (below, mut path) = (children_in.join(&name), path.clone());
                    path.push(name.clone());
                    match child.content {
                        Some((_, items)) => self.add(root, file.clone(), &below, path, items)?,
                        None => {
                            let beside = children_in.join(format!("{name}.rs"));
                            let inside = below.join("mod.rs");
                            let exists = root.join(&beside).is_file();
                            let child = if exists { beside } else { inside };
                            self.read_file(root, child, &below, path)?;
                        }
                    }
                }
                Item::Use(item) => add_uses(&item, &mut module.uses),
                mut item => {
                    if let Item::Impl(block) = &mut item {
                        block.items.retain(|i| match i {
                            ImplItem::Fn(f) => !is_test(&f.attrs),
                            _ => true,
                        });
                    }
                    local_uses(item.to_token_stream(), &mut module.uses);
                    module.items.push(item);
                }
            }
        }
        self.modules.insert(path, module);
        Ok(())
    }

    /// Where `path`, written in module `from`, leads to; `None` for other crates and for names that
    /// are neither modules nor imported.
    pub(crate) fn resolve(&self, from: &[String], path: &[String]) -> Option<Target> {
        self.resolve_within(from, path, 0)
    }

    fn resolve_within(&self, from: &[String], path: &[String], depth: usize) -> Option<Target> {
        let first = path.first()?;
        if depth > 16 {
            return None;
        }
        let mut at = from.to_vec();
        // `descend` follows `super`.
        let rest = match first.as_str() {
            "crate" => {
                at.clear();
                &path[1..]
            }
            "self" => &path[1..],
            "super" => path,
            name => {
                let module = self.modules.get(from)?;
                let known = module.children.iter().any(|c| c.0 == *name)
                    || module.uses.iter().any(|u| u.name == *name && u.path != path)
                    || module.items.iter().any(|i| item_name(i).is_some_and(|n| n == *name));
                if !known {
                    return None;
                }
                path
            }
        };
        self.descend(at, rest, depth)
    }

    /// Follows `rest` from module `at` on, through re-exports to the module that defines the item.
    fn descend(&self, mut at: ModulePath, rest: &[String], depth: usize) -> Option<Target> {
        let mut rest = rest.iter().peekable();
        while let Some(name) = rest.next() {
            let module = self.modules.get(&at)?;
            if name == "super" {
                at.pop()?;
                continue;
            }
            let defined = module.items.iter().any(|i| item_name(i).is_some_and(|n| n == *name));
            let last = rest.peek().is_none();
            if module.children.iter().any(|c| c.0 == *name) && !(defined && last) {
                at.push(name.clone());
                continue;
            }
            if defined || name == "*" {
                return Some(Target::Item(at, name.clone()));
            }
            let tail: Vec<String> = rest.cloned().collect();
            let imported = module
                .uses
                .iter()
                .find(|u| u.name == *name && u.path != std::slice::from_ref(name));
            if let Some(u) = imported {
                // A name from another crate must not be looked up in this module again.
                let inside = matches!(u.path[0].as_str(), "crate" | "self" | "super")
                    || module.children.iter().any(|c| c.0 == u.path[0]);
                if !inside && u.path[0] == *name {
                    return None;
                }
                let path: Vec<String> = u.path.iter().cloned().chain(tail).collect();
                return self.resolve_within(&at, &path, depth + 1);
            }
            for u in module.uses.iter().filter(|u| u.name == "*" && u.reexport) {
                let mut path = u.path[..u.path.len() - 1].to_vec();
                path.push(name.clone());
                if let Some(Target::Item(defined_in, item)) =
                    self.resolve_within(&at, &path, depth + 1)
                    && self.modules[&defined_in]
                        .items
                        .iter()
                        .any(|i| item_name(i).is_some_and(|n| n == item))
                {
                    return Some(Target::Item(defined_in, item));
                }
            }
            // Generated by a macro of the module, for all that can be seen here.
            return Some(Target::Item(at, name.clone()));
        }
        Some(Target::Module(at))
    }
}

/// The attributes of an item.
pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(i) => &i.attrs,
        Item::Enum(i) => &i.attrs,
        Item::ExternCrate(i) => &i.attrs,
        Item::Fn(i) => &i.attrs,
        Item::ForeignMod(i) => &i.attrs,
        Item::Impl(i) => &i.attrs,
        Item::Macro(i) => &i.attrs,
        Item::Mod(i) => &i.attrs,
        Item::Static(i) => &i.attrs,
        Item::Struct(i) => &i.attrs,
        Item::Trait(i) => &i.attrs,
        Item::TraitAlias(i) => &i.attrs,
        Item::Type(i) => &i.attrs,
        Item::Union(i) => &i.attrs,
        Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// The name of an item that has one.
pub(crate) fn item_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(i) => &i.ident,
        Item::Enum(i) => &i.ident,
        Item::Fn(i) => &i.sig.ident,
        Item::Macro(i) => i.ident.as_ref()?,
        Item::Static(i) => &i.ident,
        Item::Struct(i) => &i.ident,
        Item::Trait(i) => &i.ident,
        Item::Type(i) => &i.ident,
        Item::Union(i) => &i.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Whether an attribute restricts the item to tests: `#[cfg(test)]`, `#[cfg(all(test, …))]`.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| {
        let tokens = a.meta.to_token_stream().to_string().replace(' ', "");
        a.path().is_ident("test")
            || tokens == "cfg(test)"
            || tokens.starts_with("cfg(all(test")
            || tokens.starts_with("cfg(any(test")
    })
}

fn add_uses(item: &ItemUse, into: &mut Vec<Use>) {
    let line = item.use_token.span.start().line;
    let public = matches!(item.vis, Visibility::Public(_));
    let reexport = !matches!(item.vis, Visibility::Inherited);
    let mut leaves = Vec::new();
    flatten(&item.tree, Vec::new(), &mut leaves);
    into.extend(leaves.into_iter().map(|(path, name)| Use { path, name, public, reexport, line }));
}

fn flatten(tree: &UseTree, before: Vec<String>, leaves: &mut Vec<(Vec<String>, String)>) {
    let with = |name: String| before.iter().cloned().chain([name]).collect::<Vec<_>>();
    match tree {
        UseTree::Path(p) => flatten(&p.tree, with(p.ident.to_string()), leaves),
        UseTree::Name(n) if n.ident == "self" => {
            let name = before.last().cloned().unwrap_or_default();
            leaves.push((before, name));
        }
        UseTree::Name(n) => leaves.push((with(n.ident.to_string()), n.ident.to_string())),
        UseTree::Rename(r) if r.ident == "self" => leaves.push((before, r.rename.to_string())),
        UseTree::Rename(r) => leaves.push((with(r.ident.to_string()), r.rename.to_string())),
        UseTree::Glob(_) => leaves.push((with("*".into()), "*".into())),
        UseTree::Group(g) => g.items.iter().for_each(|t| flatten(t, before.clone(), leaves)),
    }
}

/// Collects the `use` declarations inside functions.
fn local_uses(tokens: TokenStream, into: &mut Vec<Use>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(g) => local_uses(g.stream(), into),
            TokenTree::Ident(i) if i == "use" => {
                let mut declaration: TokenStream = [TokenTree::Ident(i)].into_iter().collect();
                for token in tokens.by_ref() {
                    let end = matches!(&token, TokenTree::Punct(p) if p.as_char() == ';');
                    declaration.extend([token]);
                    if end {
                        break;
                    }
                }
                if let Ok(item) = syn::parse2::<ItemUse>(declaration) {
                    add_uses(&item, into);
                }
            }
            _ => {}
        }
    }
}
