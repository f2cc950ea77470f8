//! A stored tensor: do its shape, its type and its bytes agree?

use std::collections::BTreeMap;

use super::CheckError;

#[derive(Debug, Default)]
pub(super) struct TensorDraft<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: i64,
    pub(super) dims: Vec<i64>,
    pub(super) raw_bytes: Option<usize>,
    pub(super) is_external: bool,
    /// Elements found in each of the typed fields 4, 5, 6, 7, 10 and 11.
    typed: BTreeMap<u32, usize>,
}

impl TensorDraft<'_> {
    pub(super) fn add(&mut self, number: u32, count: usize) {
        *self.typed.entry(number).or_default() += count;
    }

    /// Shape, type and bytes must agree.
    pub(super) fn check(&self) -> Result<(), CheckError> {
        if self.is_external {
            return Err(CheckError::ExternalData {
                tensor: self.name.to_owned(),
            });
        }
        let refuse = |problem: String| {
            Err(CheckError::Tensor {
                tensor: self.name.to_owned(),
                problem,
            })
        };
        let elements = self.dims.iter().try_fold(1_usize, |product, &dim| {
            product.checked_mul(usize::try_from(dim).ok()?)
        });
        let Some(elements) = elements.filter(|&count| count <= isize::MAX.unsigned_abs() / 8)
        else {
            return refuse(format!("has an impossible shape {:?}", self.dims));
        };
        let Some(Storage { bits, typed_field }) = storage(self.datatype) else {
            return refuse(format!("has an unsupported element type {}", self.datatype));
        };
        let found = match (self.raw_bytes, self.typed.len()) {
            (Some(_), 1..) | (None, 2..) => {
                return refuse("keeps its elements in two fields".to_owned());
            }
            (Some(bytes), 0) => match bits {
                Some(bits) if (bytes * 8).is_multiple_of(bits) => bytes * 8 / bits,
                _ => return refuse(format!("has {bytes} raw bytes that are no whole elements")),
            },
            (None, 0) => 0,
            (None, 1) => match (self.typed.get(&typed_field), bits) {
                (Some(&bytes), Some(bits @ (2 | 4))) => bytes * (8 / bits),
                (Some(&count), _) => count,
                (None, _) => {
                    return refuse("keeps its elements in a field of another type".to_owned());
                }
            },
        };
        // Elements of less than a byte leave the rest of their last byte empty.
        let padding = bits.map_or(1, |bits| (8 / bits).max(1));
        let elements = elements.next_multiple_of(padding);
        if found != elements {
            let shape = &self.dims;
            return refuse(format!(
                "has shape {shape:?} and {found} elements instead of {elements}"
            ));
        }
        Ok(())
    }
}

struct Storage {
    /// Bits of one raw element; none where raw bytes are not allowed.
    bits: Option<usize>,
    /// The field for elements that are not raw; those of less than a byte share its numbers.
    typed_field: u32,
}

fn storage(datatype: i64) -> Option<Storage> {
    let (bits, typed_field) = match datatype {
        1 => (Some(32), 4),
        2 | 3 | 9 => (Some(8), 5),
        4 | 5 | 10 | 16 => (Some(16), 5),
        6 => (Some(32), 5),
        7 => (Some(64), 7),
        8 => (None, 6),
        11 => (Some(64), 10),
        12 => (Some(32), 11),
        13 => (Some(64), 11),
        // FLOAT8 in five forms, then 4 bits (UINT, INT, FLOAT) and 2 bits (UINT, INT).
        17..=20 | 24 => (Some(8), 5),
        21..=23 => (Some(4), 5),
        25 | 26 => (Some(2), 5),
        _ => return None,
    };
    Some(Storage { bits, typed_field })
}
