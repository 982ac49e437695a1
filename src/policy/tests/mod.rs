//! What all policies have in common; each policy's own tests stand in its file.

pub(super) mod contract;
