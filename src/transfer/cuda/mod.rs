//! NVIDIA's GPUs as devices, through the driver that the machine has, if it has one.
//!
//! Nothing of CUDA is needed to build or to load. [`driver`] is libcuda.so.1, opened with the first pool of a GPU; [`gpu`] one device in
//! this process, [`gpus`] all that a cache uses; [`cuda_device`] is the device of one pool; [`registration`] makes L1 reachable
//! for a GPU, [`reach`] for one pool; [`mover`] puts the copies of a piece on a stream; [`streams`] has one stream and
//! direction of a pool, with a thread that feeds it and one that notices landed pieces; [`kernel`] loads the kernel for small
//! fragments, and [`measure`] finds out which fragments it moves faster than the copy engines.
//!
//! `unsafe` lives in `driver` and in calls of its functions: handles are opaque numbers, and addresses are those of a pool's
//! promise, of L1, or of memory that the driver gave.
#![allow(unsafe_code)]

mod cuda_device;
mod driver;
mod gpu;
mod gpus;
mod kernel;
mod measure;
mod mover;
mod reach;
mod registration;
mod streams;

pub use self::cuda_device::CudaDevice;
pub use self::gpus::Gpus;
