//! How far two answers are apart.

use gpulet_client::Dtype;

/// The largest difference of two answers over the largest value of the first, of the worst output; of
/// outputs that are no f32, 1 where they are not equal. Not a number where one of them has such.
pub fn difference(dtypes: &[Option<Dtype>], one: &[Vec<u8>], other: &[Vec<u8>]) -> f64 {
    let mut worst = 0f64;
    for (dtype, (one, other)) in dtypes.iter().zip(one.iter().zip(other)) {
        if *dtype != Some(Dtype::F32) || one.len() != other.len() {
            worst = worst.max(f64::from(u8::from(one != other)));
            continue;
        }
        let (one, other) = (floats(one), floats(other));
        let largest = one.iter().fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        for (one, other) in one.iter().zip(&other) {
            let apart = (one - other).abs() / largest;
            if apart.is_nan() {
                return f64::NAN;
            }
            worst = worst.max(apart);
        }
    }
    worst
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    let (floats, _) = bytes.as_chunks();
    floats.iter().map(|float| f32::from_ne_bytes(*float).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(floats: &[f32]) -> Vec<Vec<u8>> {
        vec![floats.iter().flat_map(|float| float.to_ne_bytes()).collect()]
    }

    #[test]
    fn differences_are_relative_to_the_largest_value() {
        let f32s = [Some(Dtype::F32)];
        assert_eq!(difference(&f32s, &bytes(&[4.0, 1.0]), &bytes(&[4.0, 2.0])), 0.25);
        assert_eq!(difference(&f32s, &bytes(&[4.0]), &bytes(&[4.0])), 0.0);
        assert!(difference(&f32s, &bytes(&[4.0]), &bytes(&[f32::NAN])).is_nan());
        assert_eq!(difference(&[Some(Dtype::U8)], &[vec![1]], &[vec![2]]), 1.0);
    }
}
