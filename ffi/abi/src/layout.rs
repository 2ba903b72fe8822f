//! The twins of the structs in `include/gpulet/abi.h`: same names, same fields, every size and
//! offset asserted at compile time. Meanings are told once, in the header.

use bytemuck::{Pod, Zeroable};

use crate::ring::Entry;

/// Bytes of a model's name, its final NUL counted.
pub const NAME_BYTES: usize = 64;
/// Bytes of a tensor's name, its final NUL counted.
pub const TENSOR_NAME_BYTES: usize = 48;
/// Bytes of an explanation, its final NUL counted.
pub const TEXT_BYTES: usize = 192;
/// Dimensions of a tensor, the batch dimension counted.
pub const DIMS_MAX: usize = 8;
/// Inputs of a model, and outputs.
pub const TENSORS_MAX: usize = 8;
/// Slots of a session.
pub const SLOTS_MAX: u32 = 65536;
/// Alignment of tensors in a slot and of slots in the arena, in bytes.
pub const TENSOR_ALIGN: u64 = 256;

/// Frame kind: [`Hello`].
pub const FRAME_HELLO: u32 = 1;
/// Frame kind: [`Welcome`].
pub const FRAME_WELCOME: u32 = 2;
/// Frame kind: [`ModelQuery`].
pub const FRAME_MODEL_QUERY: u32 = 3;
/// Frame kind: [`ModelSpec`].
pub const FRAME_MODEL_SPEC: u32 = 4;
/// Frame kind: [`StateQuery`].
pub const FRAME_STATE_QUERY: u32 = 5;
/// Frame kind: [`StateReply`].
pub const FRAME_STATE_REPLY: u32 = 6;
/// Frame kind: [`Goodbye`].
pub const FRAME_GOODBYE: u32 = 7;

/// Submission kind: run a request.
pub const SUBMIT_INFER: u32 = 1;
/// Submission kind: cancel the request of a slot and generation.
pub const SUBMIT_CANCEL: u32 = 2;

/// Completion flag: answered after its deadline.
pub const COMPLETION_LATE: u32 = 1;

/// Where the ring controls stand in a region, in bytes.
pub const SUBMISSION_CONTROL_OFFSET: usize = 256;
/// See [`SUBMISSION_CONTROL_OFFSET`].
pub const COMPLETION_CONTROL_OFFSET: usize = 640;

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $kind:ty = $offset:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the header tells each field's meaning")]
        pub struct $name { $(pub $field: $kind,)* }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}

layout! {
    /// Client to daemon, first.
    Hello, 64 {
        kind: u32 = 0,
        bytes: u32 = 4,
        magic: u32 = 8,
        version: u32 = 12,
        features: u64 = 16,
        slot_bytes: u64 = 24,
        slot_count: u32 = 32,
        reserved0: u32 = 36,
        reserved1: [u64; 3] = 40,
    }
}

layout! {
    /// Daemon to client: the answer to a [`Hello`].
    Welcome, 256 {
        kind: u32 = 0,
        bytes: u32 = 4,
        status: i32 = 8,
        version: u32 = 12,
        features: u64 = 16,
        session: u64 = 24,
        region_bytes: u64 = 32,
        reserved: [u64; 3] = 40,
        text: [u8; TEXT_BYTES] = 64,
    }
}

layout! {
    /// Client to daemon: which model is called so?
    ModelQuery, 72 {
        kind: u32 = 0,
        bytes: u32 = 4,
        name: [u8; NAME_BYTES] = 8,
    }
}

layout! {
    /// One input or output of a model.
    TensorSpec, 128 {
        name: [u8; TENSOR_NAME_BYTES] = 0,
        dtype: u32 = 48,
        rank: u32 = 52,
        dims: [i64; DIMS_MAX] = 56,
        row_bytes: u64 = 120,
    }
}

layout! {
    /// Daemon to client: the answer to a [`ModelQuery`].
    ModelSpec, 2368 {
        kind: u32 = 0,
        bytes: u32 = 4,
        status: i32 = 8,
        model: u32 = 12,
        max_batch: u32 = 16,
        input_count: u32 = 20,
        output_count: u32 = 24,
        reserved0: u32 = 28,
        slo_ns: u64 = 32,
        reserved1: [u64; 3] = 40,
        name: [u8; NAME_BYTES] = 64,
        text: [u8; TEXT_BYTES] = 128,
        inputs: [TensorSpec; TENSORS_MAX] = 320,
        outputs: [TensorSpec; TENSORS_MAX] = 1344,
    }
}

layout! {
    /// Client to daemon: tell your state.
    StateQuery, 8 {
        kind: u32 = 0,
        bytes: u32 = 4,
    }
}

layout! {
    /// Daemon to client: the answer to a [`StateQuery`], with a memfd of JSON.
    StateReply, 24 {
        kind: u32 = 0,
        bytes: u32 = 4,
        status: i32 = 8,
        reserved0: u32 = 12,
        json_bytes: u64 = 16,
    }
}

layout! {
    /// Daemon to client, last: why the session is over.
    Goodbye, 208 {
        kind: u32 = 0,
        bytes: u32 = 4,
        status: i32 = 8,
        reserved0: u32 = 12,
        text: [u8; TEXT_BYTES] = 16,
    }
}

layout! {
    /// The start of a region.
    RegionHeader, 256 {
        version: u32 = 0,
        magic: u32 = 4,
        features: u64 = 8,
        region_bytes: u64 = 16,
        submission_offset: u64 = 24,
        completion_offset: u64 = 32,
        arena_offset: u64 = 40,
        slot_bytes: u64 = 48,
        slot_count: u32 = 56,
        submission_capacity: u32 = 60,
        completion_capacity: u32 = 64,
        reserved0: [u32; 15] = 68,
        ended: i32 = 128,
        reserved1: [u32; 31] = 132,
    }
}

layout! {
    /// The cursors of one ring.
    RingControl, 384 {
        tail: u32 = 0,
        reserved0: [u32; 31] = 4,
        head: u32 = 128,
        reserved1: [u32; 31] = 132,
        sleeping: u32 = 256,
        reserved2: [u32; 31] = 260,
    }
}

layout! {
    /// One request, or one cancellation.
    Submission, 64 {
        kind: u32 = 0,
        model: u32 = 4,
        slot: u32 = 8,
        generation: u32 = 12,
        rows: u32 = 16,
        reserved0: u32 = 20,
        deadline_ns: u64 = 24,
        user_data: u64 = 32,
        reserved1: [u64; 3] = 40,
    }
}

layout! {
    /// One answer.
    Completion, 64 {
        status: i32 = 0,
        flags: u32 = 4,
        slot: u32 = 8,
        generation: u32 = 12,
        rows: u32 = 16,
        model: u32 = 20,
        user_data: u64 = 24,
        queue_ns: u64 = 32,
        exec_ns: u64 = 40,
        finished_ns: u64 = 48,
        batch_rows: u32 = 56,
        epoch: u32 = 60,
    }
}

impl Entry for Submission {}
impl Entry for Completion {}

impl Submission {
    /// The name of the broken rule, if one of the rules that need no other knowledge is broken.
    ///
    /// What needs knowledge of the session (is the slot in flight, does the model exist) is checked
    /// by the dispatcher.
    pub fn broken_rule(&self, slot_count: u32) -> Option<&'static str> {
        if self.kind != SUBMIT_INFER && self.kind != SUBMIT_CANCEL {
            return Some("submission.kind is neither infer nor cancel");
        }
        if self.slot >= slot_count {
            return Some("submission.slot is outside the arena");
        }
        if self.reserved0 != 0 || self.reserved1 != [0; 3] {
            return Some("submission.reserved is not zero");
        }
        None
    }
}

/// Copies `text` into a fixed field, cut at a character border, always with a final NUL.
pub fn put_text(field: &mut [u8], text: &str) {
    field.fill(0);
    let mut end = text.len().min(field.len().saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
}

/// The text of a fixed field up to its NUL; `None` if it has no NUL or is not UTF-8.
pub fn get_text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&field[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character_and_ends_with_nul() {
        let mut field = [7u8; 6];
        put_text(&mut field, "abcdé");
        assert_eq!(get_text(&field), Some("abcd"));
        put_text(&mut field, "ab");
        assert_eq!(&field, b"ab\0\0\0\0");
        assert_eq!(get_text(b"abc"), None);
        assert_eq!(get_text(&[0xff, 0]), None);
    }

    #[test]
    fn a_submission_names_the_rule_it_breaks() {
        let good = Submission { kind: SUBMIT_INFER, slot: 3, ..Zeroable::zeroed() };
        assert_eq!(good.broken_rule(4), None);
        assert!(good.broken_rule(3).is_some_and(|rule| rule.contains("slot")));
        assert!(Submission { kind: 9, ..good }.broken_rule(4).is_some());
        assert!(Submission { reserved1: [0, 1, 0], ..good }.broken_rule(4).is_some());
    }
}
