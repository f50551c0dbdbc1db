//! Training, export and decoding.
