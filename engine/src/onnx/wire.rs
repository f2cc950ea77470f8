//! The protobuf wire format: keys, varints and lengths, with every read bounded.

use std::ops::Range;

use super::CheckError;

/// A cursor over the whole file; positions in errors are the file's.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One field's key and what follows it.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) payload: Payload,
    /// Where the key stands.
    pub(super) at: usize,
}

#[derive(Debug)]
pub(super) enum Payload {
    Varint(u64),
    Fixed64,
    Fixed32,
    Bytes(Range<usize>),
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Goes on at `at`, which must come from a range that this reader gave.
    pub(super) fn seek(&mut self, at: usize) {
        self.at = at;
    }

    pub(super) fn slice(&self, range: &Range<usize>) -> &'a [u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    /// The next field of a message that ends at `end`.
    pub(super) fn field(&mut self, end: usize) -> Result<Field, CheckError> {
        let at = self.at;
        let key = self.varint(end)?;
        let number = u32::try_from(key >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number))
            .ok_or_else(|| malformed(at, format!("field number {} out of range", key >> 3)))?;
        let payload = match key & 7 {
            0 => Payload::Varint(self.varint(end)?),
            1 => {
                self.take(8, end)?;
                Payload::Fixed64
            }
            2 => {
                let length = self.varint(end)?;
                Payload::Bytes(self.take(length, end)?)
            }
            5 => {
                self.take(4, end)?;
                Payload::Fixed32
            }
            other => return Err(malformed(at, format!("wire type {other} is not in use"))),
        };
        Ok(Field {
            number,
            payload,
            at,
        })
    }

    /// One varint that ends before `end`.
    pub(super) fn varint(&mut self, end: usize) -> Result<u64, CheckError> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(self.overrun(end));
            }
            let byte = self.bytes.get(self.at).copied().unwrap_or_default();
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed(start, "a number of more than 64 bits".to_owned()))
    }

    fn take(&mut self, length: u64, end: usize) -> Result<Range<usize>, CheckError> {
        let stop = usize::try_from(length)
            .ok()
            .and_then(|length| self.at.checked_add(length))
            .filter(|&stop| stop <= end)
            .ok_or_else(|| self.overrun(end))?;
        let range = self.at..stop;
        self.at = stop;
        Ok(range)
    }

    /// Beyond the file's end the file was cut; beyond a message's end inside it, it lies.
    fn overrun(&self, end: usize) -> CheckError {
        if end == self.bytes.len() {
            CheckError::Truncated { at: end }
        } else {
            malformed(self.at, "a field that runs past its message".to_owned())
        }
    }
}

pub(super) fn malformed(at: usize, problem: String) -> CheckError {
    CheckError::Malformed { at, problem }
}
