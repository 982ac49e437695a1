//! One transfer: a store or a load, from its acceptance to its one completion.
//!
//! [`targets`] is what it copies. [`transfer_phases`] has its states and every transition between them, as functions of its progress
//! alone. [`transfer`] is the object that others hold and whose lock guards the progress; [`work`] what its device's threads
//! call; [`settle`] its end.

mod prefetch_arrival;
mod settle;
mod targets;
mod transfer;
mod transfer_phases;
mod work;

pub use self::transfer::{PrefetchFollower, Transfer, TransferOwner, TransferPlan};
pub use self::transfer_phases::{Progress, StopReason};
