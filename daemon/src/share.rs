//! Shares of the CPU: from percent to threads and CPU sets.

use std::io;

/// What a gpulet of mechanism `cpu` gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuShare {
    /// Threads for one forward, at least one.
    pub threads: u32,
    /// The CPUs they may run on, ascending in the order of the allowed set; one for each thread.
    pub cpus: Vec<u32>,
}

/// Divides `allowed_cpus` among gpulets of so many percent each.
///
/// A gpulet gets its percentage of the CPUs, rounded, at least one. If these add up to more than
/// there are, those that gained most by rounding give one back. The sets are disjoint and in
/// order as long as there are no more gpulets than CPUs; beyond that the CPUs are handed out in
/// turn again.
///
/// With no CPUs at all every gpulet has one thread and no set, which means any CPU.
pub fn cpu_shares(shares_pct: &[u8], allowed_cpus: &[u32]) -> Vec<CpuShare> {
    let cpu_count = allowed_cpus.len() as u64;
    // In hundredths of a CPU, so that nothing depends on floating point.
    let ideals: Vec<u64> = shares_pct.iter().map(|pct| u64::from(*pct) * cpu_count).collect();
    let mut counts: Vec<u64> =
        ideals.iter().map(|ideal| ((ideal + 50) / 100).clamp(1, cpu_count.max(1))).collect();
    while counts.iter().sum::<u64>() > cpu_count {
        let gain = |index: &usize| (counts[*index] * 100).saturating_sub(ideals[*index]);
        let most = (0..counts.len()).filter(|index| counts[*index] > 1).max_by_key(gain);
        let Some(most) = most else { break };
        counts[most] -= 1;
    }
    let mut cpus = allowed_cpus.iter().copied().cycle();
    counts
        .into_iter()
        .map(|count| CpuShare {
            threads: u32::try_from(count).unwrap_or(u32::MAX),
            cpus: cpus.by_ref().take(count as usize).collect(),
        })
        .collect()
}

/// The CPUs that this process may run on, ascending.
///
/// # Errors
/// What the kernel says.
pub fn allowed_cpus() -> io::Result<Vec<u32>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    let cpus = 0..rustix::thread::CpuSet::MAX_CPU;
    Ok(cpus.filter(|cpu| set.is_set(*cpu)).filter_map(|cpu| u32::try_from(cpu).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sets(shares_pct: &[u8], allowed_cpus: &[u32]) -> Vec<Vec<u32>> {
        cpu_shares(shares_pct, allowed_cpus).into_iter().map(|share| share.cpus).collect()
    }

    #[test]
    fn shares_are_rounded_and_disjoint_in_order() {
        assert_eq!(sets(&[100], &[0, 1]), [vec![0, 1]]);
        assert_eq!(sets(&[50, 50], &[2, 5]), [vec![2], vec![5]]);
        assert_eq!(sets(&[50, 25], &[0, 1, 2, 3, 4, 5, 6, 7]), [vec![0, 1, 2, 3], vec![4, 5]]);
        assert_eq!(sets(&[1], &[7, 8]), [vec![7]]);
    }

    #[test]
    fn rounding_up_never_takes_a_neighbours_cpu() {
        assert_eq!(sets(&[50, 50], &[0, 1, 2]), [vec![0, 1], vec![2]]);
        assert_eq!(sets(&[90, 10], &[0, 1]), [vec![0], vec![1]]);
    }

    #[test]
    fn more_gpulets_than_cpus_share_them_in_turn() {
        assert_eq!(sets(&[30, 30, 30], &[4, 6]), [vec![4], vec![6], vec![4]]);
        assert_eq!(cpu_shares(&[100], &[]), [CpuShare { threads: 1, cpus: vec![] }]);
    }

    #[test]
    fn this_process_may_run_somewhere() {
        assert!(!allowed_cpus().unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn every_gpulet_gets_cpus_of_its_own_while_they_last(
            shares in prop::collection::vec(1u8..=100, 1..=8),
            cpu_count in 1u32..=64,
        ) {
            let cpus: Vec<u32> = (0..cpu_count).map(|cpu| 2 * cpu).collect();
            let parts = cpu_shares(&shares, &cpus);
            prop_assert_eq!(parts.len(), shares.len());
            for part in &parts {
                prop_assert!(part.threads >= 1);
                prop_assert_eq!(part.cpus.len(), part.threads as usize);
            }
            if shares.len() <= cpus.len() {
                let all: Vec<u32> = parts.iter().flat_map(|part| part.cpus.clone()).collect();
                prop_assert_eq!(&all[..], &cpus[..all.len()]);
            }
        }
    }
}
