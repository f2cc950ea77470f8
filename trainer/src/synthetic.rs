//! Rows for tests, drawn from a known law: some features matter, some interact, some are missing
//! and tell something by it. `tests/reference/lightgbm_reference.py` draws the same rows.

use std::sync::Arc;

use featurestore::{PredictionKey, TrainingSet};

use crate::recipe::Train;
use crate::rows::{CutOffs, Split};

/// Features of a synthetic row.
pub(crate) const COLUMNS: usize = 8;
/// A row every minute.
const STEP_MS: i64 = 60_000;

/// `rows` rows from time 0, a minute apart, each labelled a minute later.
pub(crate) fn set(rows: usize, seed: u64) -> TrainingSet {
    let mut random = XorShift(seed);
    let mut values = Vec::with_capacity(rows * COLUMNS);
    let mut labels = Vec::with_capacity(rows);
    for _ in 0..rows {
        let mut x = [0.0f32; COLUMNS];
        x[..6].fill_with(|| (random.unit() * 4.0 - 2.0) as f32);
        x[6..].fill_with(|| (random.unit() * 8.0).floor() as f32);
        let gaps = [(); 3].map(|()| random.unit() < 0.1);
        let wide = x.map(f64::from);
        let mut margin = 1.5 * wide[0] - wide[1] * wide[2] - 0.5 * wide[4].abs() - 0.6;
        margin += if x[3] > 0.5 { 1.0 } else { 0.0 };
        margin += if x[6] == 3.0 || x[6] == 5.0 { 0.8 } else { 0.0 };
        margin += if gaps[1] { 0.7 } else { 0.0 };
        let probability = 0.5 + 0.5 * margin / (1.0 + margin.abs());
        labels.push(if random.unit() < probability {
            1.0
        } else {
            0.0
        });
        for (value, _) in x.iter_mut().zip(gaps).filter(|(_, gap)| *gap) {
            *value = f32::NAN;
        }
        values.extend_from_slice(&x);
    }
    let predicted_ms: Vec<i64> = (0..rows as i64).map(|row| row * STEP_MS).collect();
    TrainingSet {
        names: (0..COLUMNS).map(|column| format!("x{column}")).collect(),
        values,
        labels,
        known_ms: predicted_ms.iter().map(|at| at + STEP_MS).collect(),
        predicted_ms,
        request_ids: (0..rows).map(|row| row.to_string()).collect(),
        predictions: predictions(rows),
        refused: 0,
        digest: [1; 32],
    }
}

/// The rows of one request.
pub(crate) fn predictions(rows: usize) -> Vec<PredictionKey> {
    let first: PredictionKey = "00000000-0000-8000-8000-000000000000/0"
        .parse()
        .expect("it names a prediction");
    let key = |row| PredictionKey { row, ..first };
    (0..rows as u32).map(key).collect()
}

/// A set whose last third is the holdout, and whose last sixth before that compares experiments.
pub(crate) fn split(set: TrainingSet) -> Split {
    let rows = set.rows() as i64;
    let cuts = CutOffs {
        from_ms: 0,
        selection_from_ms: rows / 2 * STEP_MS,
        embargo_from_ms: rows * 2 / 3 * STEP_MS,
        holdout_from_ms: rows * 2 / 3 * STEP_MS,
        to_ms: rows * STEP_MS,
        known_by_ms: rows * STEP_MS,
    };
    let train = Train {
        embargo: "0s".parse().unwrap(),
        ..Train::default()
    };
    Split::cut(Arc::new(set), &cuts, &train)
}

/// Marsaglia's xorshift, with Vigna's multiplier (ACM TOMS 2016).
struct XorShift(u64);

impl XorShift {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}
