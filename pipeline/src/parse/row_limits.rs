//! How many values a row may have.

/// Most values that a row of JSON may have; each takes several times its text.
pub(crate) const MAX_VALUES: usize = 1_000_000;

/// Whether a line has more than [`MAX_VALUES`] values. Short lines are not looked at.
pub(crate) fn has_too_many_values(line: &[u8]) -> bool {
    if line.len() <= MAX_VALUES {
        return false;
    }
    let (mut values, mut string, mut escaped) = (0, false, false);
    for &b in line {
        if string {
            string = escaped || b != b'"';
            escaped = !escaped && b == b'\\';
        } else {
            string = b == b'"';
            values += usize::from(matches!(b, b',' | b'[' | b'{'));
        }
    }
    values > MAX_VALUES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_and_text_does_not() {
        let list = |n: usize| format!("[{}0]", "0,".repeat(n)).into_bytes();
        assert!(!has_too_many_values(&list(900_000)) && has_too_many_values(&list(1_100_000)));
        let text = format!("{{\"a\": \"{}\\\",\"}}", ",".repeat(2_000_000));
        assert!(!has_too_many_values(text.as_bytes()));
    }
}
