//! The repository's files as text, and the doc comments of their items.
//!
//! In: the repository's folder. Out: paths and lines of everything that is written by hand
//! (sources, scripts, configs, docs), and for each documented item of a Rust file its name and its
//! comment.

use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, ExprLit, Field, ImplItemFn, Item, Lit, Macro, Meta, MetaNameValue,
    TraitItemFn, Variant,
};

use crate::source::tree::{attributes, item_name};

/// Folders that hold build output, data or version control.
const SKIPPED: [&str; 6] = ["target", ".git", "output", "packed", "__pycache__", "node_modules"];

/// Every file, relative to the repository, whose extension is one of `extensions` ("" for none),
/// sorted.
pub(crate) fn files(root: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).into_iter().flatten().flatten() {
            let path = folder.join(entry.file_name());
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type() {
                Ok(t) if t.is_dir() && !SKIPPED.contains(&name.as_str()) => folders.push(path),
                Ok(t) if t.is_file() => {
                    let extension = path.extension().unwrap_or_default().to_string_lossy();
                    if extensions.contains(&&*extension) {
                        all.push(path);
                    }
                }
                _ => {}
            }
        }
    }
    all.sort();
    all
}

/// The text of a file; empty where it is not UTF-8.
pub(crate) fn read(root: &Path, file: &Path) -> String {
    std::fs::read_to_string(root.join(file)).unwrap_or_default()
}

/// A documented item.
#[derive(Debug)]
pub(crate) struct Documented {
    /// Its name; for a field, variant or method, with the name of what it belongs to before it.
    pub name: String,
    /// Its doc comment.
    pub comment: String,
    /// Line of the comment.
    pub line: usize,
}

/// The documented items of a Rust file, test code included.
pub(crate) fn documented(text: &str) -> Result<Vec<Documented>, String> {
    let file = syn::parse_file(text).map_err(|e| e.to_string())?;
    let mut reader = Reader { owner: String::new(), all: Vec::new() };
    reader.visit_file(&file);
    Ok(reader.all)
}

struct Reader {
    owner: String,
    all: Vec<Documented>,
}

impl Reader {
    fn add(&mut self, name: String, attributes: &[Attribute]) {
        let mut comment = String::new();
        let mut line = None;
        for attribute in attributes {
            if let Meta::NameValue(pair) = &attribute.meta
                && pair.path.is_ident("doc")
                && let Expr::Lit(literal) = &pair.value
                && let Lit::Str(text) = &literal.lit
            {
                line.get_or_insert(attribute.pound_token.span.start().line);
                comment.push_str(&text.value());
                comment.push('\n');
            }
        }
        if let Some(line) = line {
            let owner = &self.owner;
            let name = if owner.is_empty() { name } else { format!("{owner}::{name}") };
            self.all.push(Documented { name, comment, line });
        }
    }
}

impl Reader {
    /// Documented names in the tokens of a macro call that defines items: `#[doc = "…"]`, then a
    /// name.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut comment = String::new();
        let mut line = 0;
        for token in tokens {
            match token {
                TokenTree::Group(g) if g.delimiter() == Delimiter::Bracket => {
                    let text = syn::parse2::<MetaNameValue>(g.stream()).ok();
                    let text = text.filter(|m| m.path.is_ident("doc")).map(|m| m.value);
                    if let Some(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) = text {
                        line = g.span().start().line;
                        comment.push_str(&text.value());
                    }
                }
                TokenTree::Group(g) => self.add_tokens(g.stream()),
                TokenTree::Ident(name) if !comment.is_empty() && name != "pub" => {
                    let comment = std::mem::take(&mut comment);
                    self.all.push(Documented { name: name.to_string(), comment, line });
                }
                _ => {}
            }
        }
    }
}

impl<'a> Visit<'a> for Reader {
    fn visit_item(&mut self, item: &'a Item) {
        let outside = self.owner.clone();
        let name = match item {
            Item::Mod(m) => Some(m.ident.to_string()),
            Item::Impl(block) => match &*block.self_ty {
                syn::Type::Path(t) => t.path.segments.last().map(|s| s.ident.to_string()),
                _ => None,
            },
            item => item_name(item),
        };
        if let Some(name) = name {
            if !matches!(item, Item::Impl(_)) {
                self.add(name.clone(), attributes(item));
            }
            self.owner = if matches!(item, Item::Mod(_)) { String::new() } else { name };
        }
        visit::visit_item(self, item);
        self.owner = outside;
    }
    fn visit_macro(&mut self, invocation: &'a Macro) {
        self.add_tokens(invocation.tokens.clone());
    }
    fn visit_field(&mut self, field: &'a Field) {
        if let Some(name) = &field.ident {
            self.add(name.to_string(), &field.attrs);
        }
    }
    fn visit_variant(&mut self, variant: &'a Variant) {
        self.add(variant.ident.to_string(), &variant.attrs);
        visit::visit_variant(self, variant);
    }
    fn visit_impl_item_fn(&mut self, f: &'a ImplItemFn) {
        self.add(f.sig.ident.to_string(), &f.attrs);
        visit::visit_impl_item_fn(self, f);
    }
    fn visit_trait_item_fn(&mut self, f: &'a TraitItemFn) {
        self.add(f.sig.ident.to_string(), &f.attrs);
        visit::visit_trait_item_fn(self, f);
    }
}
