//! Magic, version, features, and the decision who may talk to whom.

use crate::status::Status;

/// "GPUL": the second word of a region and of a hello.
pub const MAGIC: u32 = 0x4c55_5047;
/// Layout: both sides must agree.
pub const MAJOR: u32 = 1;
/// Additions: either side may be newer.
pub const MINOR: u32 = 0;
/// Major and minor in one word, as it stands in a region's first word.
pub const VERSION: u32 = (MAJOR << 16) | MINOR;

/// [`crate::layout::SUBMIT_CANCEL`] is understood.
pub const FEATURE_CANCEL: u64 = 1 << 0;
/// All that this build understands.
pub const FEATURES: u64 = FEATURE_CANCEL;

/// Whether a peer that announces `magic` and `version` can be talked to.
///
/// # Errors
/// [`Status::BadHandshake`] for a foreign magic or a version of zero (not yet written),
/// [`Status::VersionMismatch`] for another major version.
pub const fn compatible(magic: u32, version: u32) -> Result<(), Status> {
    if magic != MAGIC || version == 0 {
        return Err(Status::BadHandshake);
    }
    if version >> 16 != MAJOR {
        return Err(Status::VersionMismatch);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_minor_is_welcome_and_another_major_is_not() {
        assert_eq!(compatible(MAGIC, VERSION), Ok(()));
        assert_eq!(compatible(MAGIC, VERSION + 7), Ok(()));
        assert_eq!(compatible(MAGIC, VERSION + (1 << 16)), Err(Status::VersionMismatch));
        assert_eq!(compatible(MAGIC, 0), Err(Status::BadHandshake));
        assert_eq!(compatible(0, VERSION), Err(Status::BadHandshake));
    }
}
