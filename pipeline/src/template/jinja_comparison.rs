//! What stands in the place of comparisons.

use crate::template::jinja_check::is_constant;

/// Comparisons and the functions that replace them.
pub(crate) const COMPARISONS: [(&str, &str); 6] =
    [("<=", "__le"), (">=", "__ge"), ("<", "__lt"), (">", "__gt"), ("==", ""), ("!=", "")];

/// The function that replaces an operator, the operator, and its right operand.
pub(crate) type Compared = (&'static str, String, String);

/// A comparison of `first` with what follows it; none if it is not known.
pub(crate) fn compared(first: String, parts: &[Compared]) -> Option<String> {
    match parts {
        [] => Some(first),
        [(function, _, operand)] if !function.is_empty() => {
            let call = format!("{function}({}, {operand})", first.trim_end());
            Some(if function.starts_with("not") { format!("({call})") } else { call })
        }
        [(_, operator, operand)] => {
            let filter = if operator.trim() == "==" { "__eq" } else { "__ne" };
            Some(match is_constant(&first) || is_constant(operand) {
                true => first + operator + operand,
                false => format!("(({})|{filter}({operand}))", first.trim()),
            })
        }
        // `in` between other comparisons is not known.
        more if more.iter().any(|p| p.0.ends_with("__in")) => None,
        more => {
            let pairs: Vec<String> =
                more.iter().map(|(_, sign, b)| format!("'{}', {b}", sign.trim())).collect();
            Some(format!("(({})|__chain({}))", first.trim(), pairs.join(", ")))
        }
    }
}
