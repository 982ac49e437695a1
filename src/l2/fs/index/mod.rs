//! The index: all that this process knows of the directory. [`fs_index`] has the objects, their pins and uses, [`admission`] the index's part in a
//! store, [`bounds`] how full the directory may be.

mod admission;
mod bounds;
mod disk;
mod fs_index;
mod reservation;
#[cfg(test)]
#[path = "../tests/index.rs"]
mod tests;

pub use self::fs_index::{Index, Opening};
pub use self::reservation::{Admit, Reservation};
