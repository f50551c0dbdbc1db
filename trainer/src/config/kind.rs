//! The types of configuration values, and the macros that declare sections and choices.
//!
//! In: the declarations in `schema.rs`. Out: typed structs (serde) and, from the same declaration,
//! a [`ValueKind`] tree of the keys, their types and their documentation. Values are checked
//! against the tree before serde reads them, so that an error can name the file, the key and the
//! nearest known key.

use std::path::PathBuf;

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ValueKind {
    /// `true` or `false`.
    Bool,
    /// A whole number, 0 or more; `1e9` is accepted.
    Int,
    /// A finite number.
    Float,
    /// Text, for example a name or a path.
    Text,
    /// One of a few names.
    Choice(&'static [&'static str]),
    /// A list of these names, each at most once; `a,b` is accepted.
    Names(&'static [&'static str]),
    /// The inner kind, or `null` for "not set".
    Optional(Box<ValueKind>),
    /// A mapping with these keys and no others.
    Section(Vec<Field>),
}

/// One key of a section.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    /// Name within the section.
    pub name: &'static str,
    /// Documentation, one entry per line.
    pub doc: &'static [&'static str],
    pub kind: ValueKind,
}

/// A type that configuration values can have.
pub(crate) trait Schema {
    /// The description of the type, for parsing and messages.
    fn kind() -> ValueKind;
}

macro_rules! leaf {
    ($($ty:ty => $kind:expr),* $(,)?) => {
        $(impl Schema for $ty {
            fn kind() -> ValueKind {
                $kind
            }
        })*
    };
}

leaf! {
    bool => ValueKind::Bool,
    u64 => ValueKind::Int,
    usize => ValueKind::Int,
    f64 => ValueKind::Float,
    String => ValueKind::Text,
    PathBuf => ValueKind::Text,
}

impl<T: Schema> Schema for Option<T> {
    fn kind() -> ValueKind {
        ValueKind::Optional(Box::new(T::kind()))
    }
}

/// Only lists of choices are declared.
impl<T: Schema> Schema for Vec<T> {
    fn kind() -> ValueKind {
        match T::kind() {
            ValueKind::Choice(names) => ValueKind::Names(names),
            other => unreachable!("a list of {}", other.describe()),
        }
    }
}

impl ValueKind {
    /// In words, to follow "expected" in errors.
    pub(crate) fn describe(&self) -> String {
        match self {
            ValueKind::Bool => "true or false".into(),
            ValueKind::Int => "a whole number, 0 or more".into(),
            ValueKind::Float => "a number".into(),
            ValueKind::Text => "text".into(),
            ValueKind::Choice(names) => format!("one of {}", names.join(", ")),
            ValueKind::Names(names) => {
                format!("a list, each name once, of {}", names.join(", "))
            }
            ValueKind::Optional(inner) => format!("{}, or null", inner.describe()),
            ValueKind::Section(fields) => {
                let names: Vec<_> = fields.iter().map(|field| field.name).collect();
                format!("a mapping with the keys {}", names.join(", "))
            }
        }
    }

    /// The kind inside `Optional`, or the kind itself.
    pub(crate) fn required(&self) -> &ValueKind {
        match self {
            ValueKind::Optional(inner) => inner.required(),
            other => other,
        }
    }

    /// The kind at a path of keys; the empty path is this kind itself.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&ValueKind> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        match self.required() {
            ValueKind::Section(fields) => {
                fields.iter().find(|field| field.name == *first)?.kind.at(rest)
            }
            _ => None,
        }
    }

    /// Every dotted key below this kind that holds a value, in the order of declaration.
    pub(crate) fn keys(&self) -> Vec<(String, &Field)> {
        let mut keys = Vec::new();
        self.collect("", &mut keys);
        keys
    }

    fn collect<'a>(&'a self, prefix: &str, keys: &mut Vec<(String, &'a Field)>) {
        if let ValueKind::Section(fields) = self.required() {
            for field in fields {
                let key = if prefix.is_empty() {
                    field.name.to_string()
                } else {
                    format!("{prefix}.{}", field.name)
                };
                if matches!(field.kind.required(), ValueKind::Section(_)) {
                    field.kind.collect(&key, keys);
                } else {
                    keys.push((key, field));
                }
            }
        }
    }
}

/// Declares a section: a serde struct that refuses unknown fields, and its [`ValueKind`].
macro_rules! section {
    ($(#[doc = $section_doc:literal])* $name:ident {
        $($(#[doc = $doc:literal])* $field:ident: $ty:ty,)*
    }) => {
        $(#[doc = $section_doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[doc = $doc])* pub(crate) $field: $ty,)*
        }

        impl $crate::config::kind::Schema for $name {
            fn kind() -> $crate::config::kind::ValueKind {
                $crate::config::kind::ValueKind::Section(vec![
                    $($crate::config::kind::Field {
                        name: stringify!($field),
                        doc: &[$($doc),*],
                        kind: <$ty as $crate::config::kind::Schema>::kind(),
                    },)*
                ])
            }
        }
    };
}

/// Declares a choice: an enum and the names of its variants in YAML.
macro_rules! choice {
    ($(#[doc = $choice_doc:literal])* $name:ident {
        $($(#[doc = $doc:literal])* $variant:ident = $text:literal,)*
    }) => {
        $(#[doc = $choice_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub(crate) enum $name {
            $($(#[doc = $doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The name used in YAML.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::kind::Schema for $name {
            fn kind() -> $crate::config::kind::ValueKind {
                $crate::config::kind::ValueKind::Choice(&[$($text),*])
            }
        }
    };
}

pub(crate) use {choice, section};
