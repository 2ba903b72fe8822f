//! Inputs that mean nothing and are the same every time.

use gpulet_client::Dtype;

/// Fills a tensor: floats from 0 to 1, and zeros of any other type, which are an index into every
/// table and a truth value.
pub fn fill(input: &mut [u8], dtype: Option<Dtype>, seed: u64) {
    if dtype != Some(Dtype::F32) {
        input.fill(0);
        return;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    for element in input.chunks_exact_mut(4) {
        element.copy_from_slice(&random.f32().to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_from_zero_to_one_and_the_rest_is_zero() {
        let mut input = [0xffu8; 64];
        fill(&mut input, Some(Dtype::F32), 1);
        let floats = input.chunks_exact(4).map(|it| f32::from_ne_bytes(it.try_into().unwrap()));
        let floats: Vec<f32> = floats.collect();
        assert!(floats.iter().all(|value| (0.0..1.0).contains(value)));
        assert!(floats[0] != floats[1]);
        fill(&mut input, Some(Dtype::I64), 1);
        assert_eq!(input, [0; 64]);
    }
}
