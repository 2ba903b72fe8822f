//! Every maximum: those that a configuration sets, and those that none can go beyond.

use gpulet_abi::layout::{SLOTS_MAX, TENSOR_ALIGN};
use gpulet_abi::region::Geometry;

/// Sessions at a time.
pub const SESSIONS_HARD_MAX: u32 = 1024;
/// Bytes of one slot.
pub const SLOT_BYTES_HARD_MAX: u64 = 16 << 30;
/// Bytes of one region, the least that may be configured: the rings of [`SLOTS_MAX`] slots do not
/// fit, those of a few do.
pub const REGION_BYTES_HARD_MIN: u64 = 64 << 10;
/// Bytes of one region.
pub const REGION_BYTES_HARD_MAX: u64 = 64 << 30;
/// Bytes of all regions.
pub const REGION_BYTES_TOTAL_HARD_MAX: u64 = 1 << 40;
/// Requests queued for one model.
pub const QUEUE_HARD_MAX: u32 = 65536;
/// Models.
pub const MODELS_HARD_MAX: u32 = 1024;
/// Submissions taken from one session a turn.
pub const ENTRIES_PER_TURN_HARD_MAX: u32 = 4096;
/// Gpulets, and so executors.
pub const GPULETS_MAX: usize = 64;
/// GPUs of one host.
pub const DEVICES_MAX: u32 = 64;
/// MiB of device memory that a gpulet may be given: more than any device has.
pub const DEVICE_MEMORY_MAX_MIB: u64 = 1 << 20;
/// Directories of models.
pub const MODEL_ROOTS_MAX: usize = 64;
/// Users on the allow list, and groups.
pub const ACCESS_MAX: usize = 1024;
/// Rows in one batch.
pub const MAX_BATCH_HARD_MAX: u32 = 1024;
/// Forwards at each batch size before a model is ready.
pub const WARMUP_COUNT_MAX: u32 = 100;
/// The longest time that a configuration can state anywhere: one hour.
pub const DURATION_MAX_NS: u64 = 3_600_000_000_000;
/// The longest that a dispatcher or executor polls before it sleeps, unless it always polls.
pub const SPIN_MAX_NS: u64 = 1_000_000_000;
/// Bytes of a socket's path with its final NUL, as the kernel has it.
pub const SOCKET_PATH_BYTES: usize = 108;

// A queue is allocated whole at start, by code that has a bound of its own.
const _: () = assert!(QUEUE_HARD_MAX <= gpulet_plan::queue::QUEUE_CAPACITY_MAX);
// Regions are counted in one u64, and each in bytes of the arena.
const _: () = assert!(REGION_BYTES_HARD_MAX <= REGION_BYTES_TOTAL_HARD_MAX);
const _: () = assert!(SLOT_BYTES_HARD_MAX < REGION_BYTES_HARD_MAX);
// A profile cannot predict more than an SLO can allow.
const _: () = assert!(DURATION_MAX_NS <= gpulet_plan::profile::PROFILE_LATENCY_MAX_NS);
// Turns must get through a whole ring at some time: it has two entries for each slot.
const _: () = assert!(ENTRIES_PER_TURN_HARD_MAX <= 2 * SLOTS_MAX);

/// What the section `[limits]` of the configuration says. Only checked ones exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at a time.
    pub sessions_max: u32,
    /// Sessions of one user at a time; not above `sessions_max`.
    pub sessions_per_user_max: u32,
    /// Slots that a session can wish for.
    pub slot_count_max: u32,
    /// Slots of a session that has no wish; not above `slot_count_max`.
    pub slot_count_default: u32,
    /// Bytes of a slot that a session can wish for; one such slot fits a region.
    pub slot_bytes_max: u64,
    /// Bytes of a session's region.
    pub region_bytes_max: u64,
    /// Bytes of all regions together; not below `region_bytes_max`.
    pub region_bytes_total_max: u64,
    /// Requests queued for one model.
    pub queue_max: u32,
    /// Models that are served.
    pub models_max: u32,
    /// Submissions taken from one session before the next has its turn.
    pub entries_per_turn_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions_max: 64,
            sessions_per_user_max: 32,
            slot_count_max: 4096,
            slot_count_default: 64,
            slot_bytes_max: 64 << 20,
            region_bytes_max: 1 << 30,
            region_bytes_total_max: 4 << 30,
            queue_max: 1024,
            models_max: 256,
            entries_per_turn_max: 64,
        }
    }
}

impl Limits {
    /// The largest slot of which one fits a region of `region_bytes`; 0 if none does.
    pub fn largest_slot_bytes(region_bytes: u64) -> u64 {
        let overhead = Geometry::new(TENSOR_ALIGN, 1).map_or(u64::MAX, |one| one.arena_offset);
        (region_bytes.saturating_sub(overhead) & !4095).min(SLOT_BYTES_HARD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_slot_fits_its_region_and_a_larger_does_not() {
        for region_bytes in [REGION_BYTES_HARD_MIN, 1 << 20, (1 << 20) + 77, 1 << 30] {
            let slot_bytes = Limits::largest_slot_bytes(region_bytes);
            assert!(slot_bytes > 0);
            assert!(Geometry::new(slot_bytes, 1).unwrap().region_bytes <= region_bytes);
            assert!(Geometry::new(slot_bytes + 1, 1).unwrap().region_bytes > region_bytes);
        }
        assert_eq!(Limits::largest_slot_bytes(0), 0);
    }
}
