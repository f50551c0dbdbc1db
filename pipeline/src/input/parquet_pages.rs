//! Pages of a parquet file, checked before they are decoded.
//!
//! In: a file and its metadata. Out: [`CheckedGroups`], from which the parquet crate makes its
//! decoders. A page says how many values it holds, in its header and, with the delta encodings,
//! once more in its data; the decoders set memory aside for as many as it says. Here each claim is
//! compared with the bytes that are there, and what the pages of one batch of rows take is bounded
//! ([`BATCH_MEMORY`]).

use crate::input::arrow_check::{BATCH_MEMORY, BLOCK, LZ4_GROWTH, ZSTD_GROWTH};
use crate::input::parquet_delta::expanded_bytes;
use crate::input::parquet_thrift::page_sizes;
use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length, SerializedPageReader};
use parquet::schema::types::ColumnDescriptor;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes that one byte can become with Snappy (64 bytes from 3) and with Deflate.
const SNAPPY_GROWTH: u64 = 22;
const DEFLATE_GROWTH: u64 = 1_032;
/// Brotli has no bound of that kind below [`BATCH_MEMORY`].
const NO_BOUND: u64 = BATCH_MEMORY;
/// Bytes that a value takes beside its text: two levels and a view.
const VALUE_BYTES: u64 = 20;

/// Bytes that the pages of one batch of rows take once they are decoded.
#[derive(Clone, Default)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub(super) fn begin_batch(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> std::result::Result<(), String> {
        let taken = self.0.load(Ordering::Relaxed).saturating_add(bytes);
        self.0.store(taken, Ordering::Relaxed);
        if taken > BATCH_MEMORY {
            return Err(format!(
                "takes {bytes} bytes once it is decoded, which makes {taken} for rows that are read together; at most {BATCH_MEMORY} are read: write the file in smaller pages"
            ));
        }
        Ok(())
    }
}

/// Some row groups of a file.
pub(super) struct CheckedGroups {
    pub(super) file: Arc<File>,
    pub(super) metadata: Arc<ParquetMetaData>,
    /// Indices of the row groups.
    pub(super) groups: Vec<usize>,
    pub(super) budget: Budget,
}

impl RowGroups for CheckedGroups {
    fn num_rows(&self) -> usize {
        self.row_groups().map(|group| group.num_rows().max(0) as usize).sum()
    }

    fn column_chunks(&self, i: usize) -> Result<Box<dyn PageIterator>> {
        Ok(Box::new(Chunks {
            file: self.file.clone(),
            metadata: self.metadata.clone(),
            column: i,
            groups: self.groups.clone().into_iter(),
            budget: self.budget.clone(),
        }))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.groups.iter().map(|group| self.metadata.row_group(*group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// The parts of one column, row group by row group.
struct Chunks {
    file: Arc<File>,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    groups: std::vec::IntoIter<usize>,
    budget: Budget,
}

impl Iterator for Chunks {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let group = self.metadata.row_group(self.groups.next()?);
        let column = group.column(self.column);
        let file = Arc::new(CheckedFile {
            file: self.file.clone(),
            growth: growth(column),
            expects_header: AtomicBool::new(false),
            claimed: AtomicU64::new(0),
        });
        let rows = group.num_rows().max(0) as usize;
        let pages = SerializedPageReader::new(file.clone(), column, rows, None);
        Some(pages.map(|pages| {
            let (column, budget) = (column.column_descr_ptr(), self.budget.clone());
            Box::new(CheckedPages { pages, file, column, budget, skipped_dictionary: 0 }) as _
        }))
    }
}

impl PageIterator for Chunks {}

/// Bytes that one compressed byte of a column can become.
fn growth(column: &ColumnChunkMetaData) -> u64 {
    match column.compression() {
        Compression::UNCOMPRESSED => 1,
        Compression::SNAPPY => SNAPPY_GROWTH,
        Compression::GZIP(_) => DEFLATE_GROWTH,
        Compression::LZ4 | Compression::LZ4_RAW => LZ4_GROWTH,
        Compression::ZSTD(_) => ZSTD_GROWTH,
        Compression::BROTLI(_) | Compression::LZO => NO_BOUND,
    }
}

/// A file whose page headers are checked when they are read.
struct CheckedFile {
    file: Arc<File>,
    growth: u64,
    /// Whether a header is what is read next.
    expects_header: AtomicBool,
    /// Bytes of the page whose header was read last, once they are decompressed.
    claimed: AtomicU64,
}

impl Length for CheckedFile {
    fn len(&self) -> u64 {
        Length::len(&*self.file)
    }
}

/// The bytes from a page's header on; nothing where the reader knows the header already and does
/// not use what it asked for.
enum Header {
    There(BufReader<File>),
    Known,
}

impl Read for Header {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Header::There(bytes) => bytes.read(out),
            Header::Known => Ok(0),
        }
    }
}

impl ChunkReader for CheckedFile {
    type T = Header;

    fn get_read(&self, start: u64) -> Result<Header> {
        if !self.expects_header.load(Ordering::Relaxed) {
            return Ok(Header::Known);
        }
        let mut bytes = self.file.get_read(start)?;
        let at = |e: String| ParquetError::General(format!("the page at byte {start} {e}"));
        let (size, compressed) =
            page_sizes(bytes.fill_buf()?).map_err(|e| at(format!("has {e}")))?;
        let unsigned =
            |n: i64| u64::try_from(n).map_err(|_| at(format!("claims to have {n} bytes")));
        let (size, compressed) = (unsigned(size)?, unsigned(compressed)?);
        if size > compressed.saturating_mul(self.growth).saturating_add(BLOCK) {
            return Err(at(format!(
                "claims that {compressed} bytes become {size} once they are decompressed"
            )));
        }
        self.claimed.store(size, Ordering::Relaxed);
        Ok(Header::There(bytes))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.file.get_bytes(start, length)
    }
}

/// The pages of one column of a row group.
struct CheckedPages {
    pages: SerializedPageReader<CheckedFile>,
    file: Arc<CheckedFile>,
    column: Arc<ColumnDescriptor>,
    budget: Budget,
    /// Bytes of a dictionary that was skipped and may be asked for.
    skipped_dictionary: u64,
}

impl CheckedPages {
    fn checked(&self, page: Option<Page>) -> Result<Option<Page>> {
        if let Some(page) = &page {
            self.check(page).map_err(|e| self.of(e))?;
        }
        Ok(page)
    }

    fn of(&self, what: String) -> ParquetError {
        ParquetError::General(format!("a page of column {} {what}", self.column.path().string()))
    }

    fn check(&self, page: &Page) -> std::result::Result<(), String> {
        let count = u64::from(page.num_values());
        let fixed = match self.column.physical_type() {
            Type::FIXED_LEN_BYTE_ARRAY => u64::try_from(self.column.type_length()).unwrap_or(0),
            _ => 0,
        };
        self.budget.take(count.saturating_mul(VALUE_BYTES.max(fixed)))?;
        let values = match page {
            Page::DictionaryPage { buf, .. } => {
                let least = match self.column.physical_type() {
                    Type::BOOLEAN => 1,
                    Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
                    Type::INT64 | Type::DOUBLE => 8,
                    Type::INT96 => 12,
                    Type::FIXED_LEN_BYTE_ARRAY => fixed.max(1),
                };
                if count.saturating_mul(least) > buf.len() as u64 {
                    return Err(format!(
                        "claims {count} values of a dictionary, but has {} bytes",
                        buf.len()
                    ));
                }
                return Ok(());
            }
            page => self.values(page).ok_or("claims levels that are longer than itself")?,
        };
        let texts = match page.encoding() {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => return Ok(()),
        };
        self.budget.take(expanded_bytes(values, count, texts)?)
    }

    /// The values of a data page, behind its levels.
    fn values<'a>(&self, page: &'a Page) -> Option<&'a [u8]> {
        match page {
            Page::DictionaryPage { buf, .. } => Some(buf),
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                buf.get(usize::try_from(levels).ok()?..)
            }
            Page::DataPage { buf, num_values, def_level_encoding, rep_level_encoding, .. } => {
                let levels = [
                    (self.column.max_rep_level(), rep_level_encoding),
                    (self.column.max_def_level(), def_level_encoding),
                ];
                let mut rest: &[u8] = buf;
                for (most, encoding) in levels.into_iter().filter(|(most, _)| *most > 0) {
                    let bytes = if *encoding == Encoding::RLE {
                        let (length, behind) = rest.split_first_chunk::<4>()?;
                        rest = behind;
                        u64::from(u32::from_le_bytes(*length))
                    } else {
                        let bits = u64::from(i16::BITS - most.leading_zeros());
                        (u64::from(*num_values) * bits).div_ceil(8)
                    };
                    rest = rest.get(usize::try_from(bytes).ok()?..)?;
                }
                Some(rest)
            }
        }
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        // So that the page's header is read, and checked, before memory is set aside.
        if self.peek_next_page()?.is_some() {
            self.budget.take(self.file.claimed.load(Ordering::Relaxed)).map_err(|e| self.of(e))?;
        }
        let page = self.pages.get_next_page()?;
        self.checked(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.file.expects_header.store(true, Ordering::Relaxed);
        let page = self.pages.peek_next_page();
        self.file.expects_header.store(false, Ordering::Relaxed);
        page
    }

    fn skip_next_page(&mut self) -> Result<()> {
        if self.peek_next_page()?.is_some_and(|page| page.is_dict) {
            self.skipped_dictionary = self.file.claimed.load(Ordering::Relaxed);
        }
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.budget.take(std::mem::take(&mut self.skipped_dictionary)).map_err(|e| self.of(e))?;
        let page = self.pages.take_deferred_dictionary()?;
        self.checked(page)
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.peek_next_page()?;
        self.pages.at_record_boundary()
    }
}
