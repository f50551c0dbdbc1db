//! Descriptions in a parquet file (Thrift's compact protocol), read before the parquet crate sees
//! them.
//!
//! In: the bytes of a footer or of a page's header. Out: nothing, or what is wrong. The crate sets
//! memory aside for as many columns, and for pages as large, as these bytes say; so they are
//! compared with what is there. What the fields mean: parquet-format, `parquet.thrift`.

/// Structs and lists inside one another.
const DEEPEST: usize = 64;

/// Kinds of values, as they are numbered in the compact protocol. A Boolean field has its value in
/// its kind.
const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Checks the description of a file: every list and text lies within it, and no group of the schema
/// claims more columns than there are.
pub(super) fn check_footer(footer: &[u8]) -> Result<(), String> {
    const SCHEMA: u64 = 2;
    const NUM_CHILDREN: u64 = 5;
    let mut from = Compact { bytes: footer, length: footer.len() };
    from.fields(0, |from, field, kind| {
        if (field, kind) != (SCHEMA, LIST) {
            return from.skip(kind, 1);
        }
        let (of, count) = from.list()?;
        for _ in 0..count {
            if of != STRUCT {
                return Err(from.damaged("a schema that is no list of structs"));
            }
            from.fields(2, |from, field, kind| {
                if (field, kind) != (NUM_CHILDREN, I32) {
                    return from.skip(kind, 3);
                }
                let children = from.integer()?;
                if children < 0 || children.unsigned_abs() > count {
                    return Err(format!(
                        "its schema has {count} elements, and one claims {children} of them as its own"
                    ));
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// Bytes that a page has once it is decompressed, and those that it takes in the file, as its
/// header says. The fields of the header come in the order of their numbers.
pub(super) fn page_sizes(header: &[u8]) -> Result<(i64, i64), String> {
    let mut from = Compact { bytes: header, length: header.len() };
    let mut sizes = [0; 3];
    for (at, size) in sizes.iter_mut().enumerate() {
        // One behind the field before it, of 32 bits.
        if from.byte()? != 1 << 4 | I32 {
            let what = ["a kind", "a size", "a compressed size"][at];
            return Err(from.damaged(&format!("a page's header without {what} in its place")));
        }
        *size = from.integer()?;
    }
    Ok((sizes[1], sizes[2]))
}

struct Compact<'a> {
    bytes: &'a [u8],
    /// Bytes at the beginning.
    length: usize,
}

impl Compact<'_> {
    fn damaged(&self, what: &str) -> String {
        format!("{what}, at byte {} of its description", self.length - self.bytes.len())
    }

    fn byte(&mut self) -> Result<u8, String> {
        let (first, rest) =
            self.bytes.split_first().ok_or_else(|| self.damaged("an end within a value"))?;
        self.bytes = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.damaged("a number of more than 64 bits"))
    }

    /// A number whose lowest bit says whether it is negative.
    fn integer(&mut self) -> Result<i64, String> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn leave_out(&mut self, bytes: u64) -> Result<(), String> {
        let rest = usize::try_from(bytes).ok().and_then(|n| self.bytes.get(n..));
        self.bytes =
            rest.ok_or_else(|| self.damaged(&format!("a value that claims {bytes} bytes")))?;
        Ok(())
    }

    /// The kind of a list's values and their number, each at least a byte.
    fn list(&mut self) -> Result<(u8, u64), String> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
        if count > self.bytes.len() as u64 {
            return Err(self.damaged(&format!("a list that claims {count} values")));
        }
        Ok((head & 15, count))
    }

    /// Reads a struct; `read` reads the value of the field with a number and a kind.
    fn fields(
        &mut self,
        depth: usize,
        mut read: impl FnMut(&mut Self, u64, u8) -> Result<(), String>,
    ) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(self.damaged(&format!("more than {DEEPEST} structs in one another")));
        }
        let mut field = 0u64;
        loop {
            let head = self.byte()?;
            if head & 15 == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.integer()?.unsigned_abs(),
                more => field + u64::from(more),
            };
            read(self, field, head & 15)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        match kind {
            1 | 2 => Ok(()),
            3 => self.byte().map(|_| ()),
            4..=6 => self.number().map(|_| ()),
            7 => self.leave_out(8),
            8 => {
                let bytes = self.number()?;
                self.leave_out(bytes)
            }
            LIST | 10 => {
                let (of, count) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(of, depth + 1))
            }
            11 => {
                let count = self.number()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 15, depth + 1)
                })
            }
            STRUCT => self.fields(depth, |from, _, kind| from.skip(kind, depth + 1)),
            other => Err(self.damaged(&format!("a value of unknown kind {other}"))),
        }
    }

    /// Within lists and maps a Boolean takes a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        if kind == 1 || kind == 2 { self.byte().map(|_| ()) } else { self.skip(kind, depth) }
    }
}
