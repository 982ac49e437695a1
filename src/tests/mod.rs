//! Unit tests of single files of `src`.

mod doorbell;
