//! What this process knows of the directory: [`table`] the objects, their pins and uses, [`admission`] the index's part in a store,
//! [`bounds`] how full the directory may be.

mod admission;
mod bounds;
mod disk;
mod reservation;
mod table;
#[cfg(test)]
#[path = "../tests/index.rs"]
mod tests;

pub use self::reservation::{Admit, Reservation};
pub use self::table::{Index, Opening};
