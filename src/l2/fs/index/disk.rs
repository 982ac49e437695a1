//! The bound of the file system, and the bytes that are no object's.

/// The bound that the file system sets, in bytes of disk of the whole directory.
pub struct DiskBound {
    /// Most bytes that leave free what is to stay free, as last measured.
    pub measured: u64,
    /// Most bytes, as learned from a store that the file system refused.
    pub refused: u64,
    /// Nothing is evicted now for what the file system lacks, beyond what stores need.
    pub patient: bool,
    /// A store met this bound below the capacity since the last call of `take_pressed`.
    pub pressed: bool,
}

impl Default for DiskBound {
    fn default() -> DiskBound {
        DiskBound { measured: u64::MAX, refused: u64::MAX, patient: false, pressed: false }
    }
}

impl DiskBound {
    /// The lower of both bounds.
    pub fn most(&self) -> u64 {
        self.measured.min(self.refused)
    }

    /// Whether a store met the file system's bound since the last call of `take_pressed`.
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }
}

/// Bytes of disk that belong to no object and to no write. They count under the capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overhead {
    /// Files of objects found broken.
    pub quarantine: u64,
    /// Temporary files whose writers may still live.
    pub leftovers: u64,
    pub directories: u64,
}

impl Overhead {
    /// The sum of all three.
    pub fn bytes(&self) -> u64 {
        self.quarantine + self.leftovers + self.directories
    }
}
