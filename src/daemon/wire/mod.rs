//! The bytes on the socket: frames, the fields inside them, and every message that exists.
//!
//! A frame is a [`FrameHead`] and so many bytes of fields. Numbers are little-endian words of eight bytes; arrays and texts have
//! their count in front and are padded to whole words, so that a reader uses them where they lie. Both ends are on one machine
//! and may be of different builds, so the version is compared when a connection begins.
//!
//! A live client that loses its connection sends one byte on the connection for pushes. It closes that connection when it uses
//! nothing of L1 any more.

pub mod frame;
pub mod messages;
pub mod request;

pub use frame::{FRAME_BYTES_MAX, Field, Fields, Frame, FrameHead, KEPT_BYTES};
pub use messages::{PUSH_DONE, PUSH_LOOKED_UP, PUSH_RELEASED, WIRE_VERSION, Welcome, WireView, look_for};
pub use request::Request;
