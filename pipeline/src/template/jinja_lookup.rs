//! What stands in the place of lookups: `a.b`, `a[b]`, `a[b:c]`.

use crate::template::jinja_check::{is_constant, is_count};
use crate::template::python_attributes::{is_method_name, is_number_attribute};

/// Whether an attribute of that name may be a method or an attribute of a number, which minijinja
/// does not know.
pub(crate) fn is_looked_up(name: &str) -> bool {
    is_method_name(name) || is_number_attribute(name)
}

/// Puts a function in the place of the attribute `name`, which ends `out`, if it may be a method.
pub(crate) fn attribute(out: &mut String, name: &str) -> Option<()> {
    if is_looked_up(name) {
        let (of, name) = out.rsplit_once('.')?;
        *out = format!("__attribute({of}, '{}')", name.trim());
    }
    Some(())
}

/// Appends the index or slice `inside` to the value `out`. A text that no item has may name a
/// method.
pub(crate) fn indexed(out: &mut String, inside: &str, slice: bool) {
    let named = inside.trim().trim_matches(['"', '\'']);
    if slice {
        let value = std::mem::take(out);
        *out = format!("(({}|__of)[{inside}]|__own)", value.trim_start());
    } else if is_count(inside) || is_constant(inside) && !is_method_name(named) {
        out.push_str(&format!("[{inside}]"));
    } else {
        let space = out.len() - out.trim_start().len();
        let value = out.split_off(space);
        out.push_str(&format!("__item({value}, {inside})"));
    }
}
