//! Sixteen fp32 values at a time, in the instruction sets that the products of this folder are
//! compiled for: AVX-512, AVX2 with FMA, and plain code.
//!
//! A value of a type that implements [`Vectors`] is the proof that the machine has its
//! instructions: there is no other way to make one than [`Avx512::detect`] and [`Avx2::detect`].
#![allow(unsafe_code, reason = "vector instructions that were detected")]

/// Values in a vector.
pub(super) const LANES: usize = 16;

/// Bytes between a line that is read and the one that is asked for meanwhile: more than a page
/// holds what the processor itself asks for, but not beyond the page.
const AHEAD: usize = 8192;

/// Operations on [`LANES`] fp32 values.
pub(super) trait Vectors: Copy {
    /// Sixteen values.
    type V: Copy;
    /// Rows whose sums fit into registers beside each other, two vectors a row.
    const ROWS: usize;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, values: &[f32; LANES]) -> Self::V;
    /// Two vectors of bf16 values: from the low and from the high halves of the words.
    fn bf16(self, words: &[u32; LANES]) -> (Self::V, Self::V);
    fn int8(self, values: &[i8; LANES]) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `sum + a · b`, rounded once where the machine can.
    fn add_product(self, sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    fn store(self, values: Self::V, out: &mut [f32; LANES]);
    /// Asks for the cache line that lies [`AHEAD`] bytes behind `line`, whether or not there is
    /// memory: what a product reads next.
    fn fetch_ahead<T>(self, line: &T);
}

/// Every machine.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Vectors for Plain {
    type V = [f32; LANES];
    const ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        *values
    }

    #[inline(always)]
    fn bf16(self, words: &[u32; LANES]) -> (Self::V, Self::V) {
        (words.map(|w| f32::from_bits(w << 16)), words.map(|w| f32::from_bits(w & 0xffff_0000)))
    }

    #[inline(always)]
    fn int8(self, values: &[i8; LANES]) -> Self::V {
        values.map(f32::from)
    }

    #[inline(always)]
    fn mul(self, mut a: Self::V, b: Self::V) -> Self::V {
        a.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
        a
    }

    #[inline(always)]
    fn add_product(self, mut sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
        sum
    }

    #[inline(always)]
    fn store(self, values: Self::V, out: &mut [f32; LANES]) {
        *out = values;
    }

    #[inline(always)]
    fn fetch_ahead<T>(self, _: &T) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{AHEAD, LANES, Vectors};

    #[inline(always)]
    fn fetch_ahead<T>(line: &T) {
        // An address that is only asked for may be outside of any buffer.
        let ahead = std::ptr::from_ref(line).cast::<i8>().wrapping_add(AHEAD);
        // SAFETY: SSE, which every x86-64 has; the instruction does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
    }

    /// A machine with AVX-512 (F, VL, DQ, BW).
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    impl Avx512 {
        pub(in super::super) fn detect() -> Option<Self> {
            let has = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw");
            has.then_some(Avx512(()))
        }
    }

    impl Vectors for Avx512 {
        type V = __m512;
        const ROWS: usize = 8;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: AVX-512F was detected, else there would be no `self`.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn load(self, values: &[f32; LANES]) -> __m512 {
            // SAFETY: as in `splat`; the array has the vector's 64 bytes.
            unsafe { _mm512_loadu_ps(values.as_ptr()) }
        }

        #[inline(always)]
        fn bf16(self, words: &[u32; LANES]) -> (__m512, __m512) {
            // SAFETY: as in `load`.
            unsafe {
                let words = _mm512_loadu_si512(words.as_ptr().cast());
                let low = _mm512_slli_epi32::<16>(words);
                let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000u32 as i32));
                (_mm512_castsi512_ps(low), _mm512_castsi512_ps(high))
            }
        }

        #[inline(always)]
        fn int8(self, values: &[i8; LANES]) -> __m512 {
            // SAFETY: as in `splat`; the array has the 16 bytes that are read.
            unsafe {
                let bytes = _mm_loadu_si128(values.as_ptr().cast());
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
            }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn add_product(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_fmadd_ps(a, b, sum) }
        }

        #[inline(always)]
        fn store(self, values: __m512, out: &mut [f32; LANES]) {
            // SAFETY: as in `load`.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) }
        }

        #[inline(always)]
        fn fetch_ahead<T>(self, line: &T) {
            fetch_ahead(line);
        }
    }

    /// A machine with AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());

    impl Avx2 {
        pub(in super::super) fn detect() -> Option<Self> {
            let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            has.then_some(Avx2(()))
        }
    }

    impl Vectors for Avx2 {
        type V = (__m256, __m256);
        const ROWS: usize = 2;

        #[inline(always)]
        fn splat(self, value: f32) -> Self::V {
            // SAFETY: AVX2 and FMA were detected, else there would be no `self`.
            let v = unsafe { _mm256_set1_ps(value) };
            (v, v)
        }

        #[inline(always)]
        fn load(self, values: &[f32; LANES]) -> Self::V {
            let (low, high) = values.split_at(8);
            // SAFETY: as in `splat`; each half has a vector's 32 bytes.
            unsafe { (_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())) }
        }

        #[inline(always)]
        fn bf16(self, words: &[u32; LANES]) -> (Self::V, Self::V) {
            let (first, second) = words.split_at(8);
            // SAFETY: as in `load`.
            unsafe {
                let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
                let a = _mm256_loadu_si256(first.as_ptr().cast());
                let b = _mm256_loadu_si256(second.as_ptr().cast());
                let low = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
                let high = |v| _mm256_castsi256_ps(_mm256_and_si256(v, mask));
                ((low(a), low(b)), (high(a), high(b)))
            }
        }

        #[inline(always)]
        fn int8(self, values: &[i8; LANES]) -> Self::V {
            // SAFETY: as in `splat`; the array has the 16 bytes that are read.
            unsafe {
                let bytes = _mm_loadu_si128(values.as_ptr().cast());
                let float = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                (float(bytes), float(_mm_srli_si128::<8>(bytes)))
            }
        }

        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as in `splat`.
            unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }

        #[inline(always)]
        fn add_product(self, sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as in `splat`.
            unsafe { (_mm256_fmadd_ps(a.0, b.0, sum.0), _mm256_fmadd_ps(a.1, b.1, sum.1)) }
        }

        #[inline(always)]
        fn store(self, values: Self::V, out: &mut [f32; LANES]) {
            let (low, high) = out.split_at_mut(8);
            // SAFETY: as in `load`.
            unsafe {
                _mm256_storeu_ps(low.as_mut_ptr(), values.0);
                _mm256_storeu_ps(high.as_mut_ptr(), values.1);
            }
        }

        #[inline(always)]
        fn fetch_ahead<T>(self, line: &T) {
            fetch_ahead(line);
        }
    }
}
