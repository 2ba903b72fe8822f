//! Green contexts: parts of a device's multiprocessors that share nothing.
//!
//! A device is split once, into groups as small as it gives them, and a part is a run of groups.
//! One numbering for all parts is what keeps them apart: two splits of one device would begin with
//! the same multiprocessors.

use std::mem::MaybeUninit;
use std::ptr;

use cudarc::driver::sys;

use super::driver::{CudaError, Device, Stream, check};

/// More groups than any device has.
const GROUPS_MAX: usize = 256;

/// The groups of a device.
pub struct Split {
    groups: Vec<sys::CUdevResource>,
    /// Multiprocessors of each group.
    group_sm_count: u32,
    /// Of all groups together; what is left over belongs to nobody.
    pub sm_count: u32,
}

// SAFETY: plain descriptions that the driver filled in.
unsafe impl Send for Split {}

impl Split {
    /// Splits what this process may use of `device` into the smallest groups that lose the fewest
    /// multiprocessors.
    ///
    /// # Errors
    /// [`CudaError`], also where a process under a percentage of MPS asks.
    pub fn new(device: &Device) -> Result<Split, CudaError> {
        let mut whole = MaybeUninit::zeroed();
        let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
        // SAFETY: the out-parameter is valid.
        let code = unsafe { sys::cuDeviceGetDevResource(device.handle, whole.as_mut_ptr(), kind) };
        check(code, "cuDeviceGetDevResource")?;
        // SAFETY: filled in by the call; and zeroes are a value of it as well.
        let whole: sys::CUdevResource = unsafe { whole.assume_init() };
        let mut best: Option<Split> = None;
        // A driver gives what it can: fewer groups where their size does not fit its clusters.
        for size in [2, 4, 8, 16, 32] {
            let Ok(split) = Split::by(&whole, size) else { continue };
            if best.as_ref().is_none_or(|best| split.sm_count > best.sm_count) {
                best = Some(split);
            }
        }
        match best {
            Some(split) => Ok(split),
            None => Split::by(&whole, 1),
        }
    }

    fn by(whole: &sys::CUdevResource, size: u32) -> Result<Split, CudaError> {
        let what = "cuDevSmResourceSplitByCount";
        let mut count = GROUPS_MAX as u32;
        // SAFETY: zeroes are a value of the description.
        let mut groups: Vec<sys::CUdevResource> =
            vec![unsafe { MaybeUninit::zeroed().assume_init() }; GROUPS_MAX];
        let mut left = MaybeUninit::<sys::CUdevResource>::zeroed();
        // SAFETY: room for as many groups as `count` says; the others are valid.
        let code = unsafe {
            sys::cuDevSmResourceSplitByCount(
                groups.as_mut_ptr(),
                &mut count,
                whole,
                left.as_mut_ptr(),
                0,
                size,
            )
        };
        check(code, what)?;
        groups.truncate(count as usize);
        // SAFETY: groups of multiprocessors have this member of the union.
        let sizes = groups.iter().map(|group| unsafe { group.__bindgen_anon_1.sm.smCount });
        let group_sm_count = sizes.clone().min().unwrap_or(0);
        let sm_count = sizes.sum();
        Ok(Split { groups, group_sm_count, sm_count })
    }

    /// How many groups there are.
    pub fn group_count(&self) -> u32 {
        self.groups.len() as u32
    }

    /// Multiprocessors of one group.
    pub fn group_sm_count(&self) -> u32 {
        self.group_sm_count
    }

    /// A context on the groups from `first` on.
    ///
    /// # Errors
    /// [`CudaError`].
    ///
    /// # Panics
    /// If there are no such groups.
    pub fn part(&self, device: &Device, first: u32, count: u32) -> Result<Green, CudaError> {
        let mut groups = self.groups[first as usize..][..count as usize].to_vec();
        let (mut description, mut raw) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the groups are of one split of this device; the out-parameters are valid.
        unsafe {
            check(
                sys::cuDevResourceGenerateDesc(&mut description, groups.as_mut_ptr(), count),
                "cuDevResourceGenerateDesc",
            )?;
            let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
            check(
                sys::cuGreenCtxCreate(&mut raw, description, device.handle, flags),
                "cuGreenCtxCreate",
            )?;
        }
        Ok(Green { raw, sm_count: count * self.group_sm_count })
    }
}

/// A part of a device.
#[derive(Debug)]
pub struct Green {
    raw: sys::CUgreenCtx,
    /// Its multiprocessors.
    pub sm_count: u32,
}

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Green {}
// SAFETY: as above.
unsafe impl Sync for Green {}

impl Green {
    /// A stream whose work runs on this part alone.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn stream(&self) -> Result<Stream, CudaError> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = ptr::null_mut();
        // SAFETY: the green context is live, the out-parameter is valid.
        let code = unsafe { sys::cuGreenCtxStreamCreate(&mut raw, self.raw, flags, 0) };
        check(code, "cuGreenCtxStreamCreate")?;
        Stream::adopt(raw, "cuGreenCtxStreamCreate")
    }
}

impl Drop for Green {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once; its streams are gone by then.
        let _ = unsafe { sys::cuGreenCtxDestroy(self.raw) };
    }
}

/// Runs of groups for gpulets of so many percent each, in order: as many groups as the percentage
/// asks for, rounded, at least one; what rounding gave too many is taken back where it gave most.
/// First group and count for each.
///
/// `None` where there are more gpulets than groups.
pub fn places(shares_pct: &[u8], group_count: u32) -> Option<Vec<(u32, u32)>> {
    if shares_pct.len() > group_count as usize {
        return None;
    }
    let ideal = |pct: &u8| u32::from(*pct) * group_count;
    let mut counts: Vec<u32> =
        shares_pct.iter().map(|pct| ((ideal(pct) + 50) / 100).max(1)).collect();
    while counts.iter().sum::<u32>() > group_count {
        let gain =
            |index: &usize| i64::from(counts[*index] * 100) - i64::from(ideal(&shares_pct[*index]));
        let most = (0..counts.len()).filter(|index| counts[*index] > 1).max_by_key(gain)?;
        counts[most] -= 1;
    }
    let mut first = 0;
    let place = |count: u32| {
        first += count;
        (first - count, count)
    };
    Some(counts.into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::places;
    use proptest::prelude::*;

    #[test]
    fn groups_follow_the_percentages() {
        assert_eq!(places(&[25, 25, 25, 25], 16).unwrap(), [(0, 4), (4, 4), (8, 4), (12, 4)]);
        assert_eq!(places(&[40, 60], 8).unwrap(), [(0, 3), (3, 5)]);
        assert_eq!(places(&[1, 99], 8).unwrap(), [(0, 1), (1, 7)]);
        assert_eq!(places(&[100], 66).unwrap(), [(0, 66)]);
        assert_eq!(places(&[10, 10], 1), None);
    }

    proptest! {
        #[test]
        fn parts_never_overlap(
            shares in prop::collection::vec(1u8..=12, 1..=8),
            groups in 8u32..=80,
        ) {
            let parts = places(&shares, groups).unwrap();
            let mut end = 0;
            for (first, count) in parts {
                prop_assert_eq!(first, end);
                prop_assert!(count >= 1);
                end += count;
            }
            prop_assert!(end <= groups);
        }
    }
}
