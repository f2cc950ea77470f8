//! Content encodings of both directions: gzip, and deflate, which is zlib's format.
//!
//! What comes is bounded by its decoded size and by how much larger that is than what was sent. What
//! goes is compressed only where the caller asks and it can save a round trip.

use std::io::{Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};

/// The codings that are offered, as a header lists them.
pub(super) const OFFERED: &str = "gzip, deflate";
/// Times that a body may be larger decoded than sent, once it is beyond [`FREE_BYTES`].
const RATIO_MAX: usize = 100;
/// Decoded bytes that no ratio is asked of: a few zeros compress very well.
const FREE_BYTES: usize = 1 << 20;
/// Below this an answer travels in TCP's first window (RFC 6928: ten segments), so that compressing
/// it would only cost.
pub(super) const WORTH_BYTES: usize = 14 << 10;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

/// Why an encoded body is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodingError {
    #[error("content encoding is not offered: send gzip, deflate, or the body as it is")]
    Unknown,
    #[error("the body is no {} data, is cut short, or goes on after its end", .0.name())]
    Corrupt(Coding),
    #[error("the decoded body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the decoded body is more than {RATIO_MAX} times as large as what was sent")]
    Bomb,
}

impl Coding {
    /// The coding's registered name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return Some(Self::Gzip);
        }
        name.eq_ignore_ascii_case("deflate")
            .then_some(Self::Deflate)
    }

    /// How the body of a request is encoded.
    ///
    /// # Errors
    /// When it is in a way that is not offered, or in more than one.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, CodingError> {
        let mut coding = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            for name in value.to_str().map_err(|_| CodingError::Unknown)?.split(',') {
                let name = name.trim();
                if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                    continue;
                }
                let named = Self::named(name).ok_or(CodingError::Unknown)?;
                if coding.replace(named).is_some() {
                    return Err(CodingError::Unknown);
                }
            }
        }
        Ok(coding)
    }

    /// The coding that an answer may have: the one of greatest weight, unless the caller would
    /// rather have none.
    pub(super) fn of_answer(headers: &HeaderMap) -> Option<Self> {
        let (mut gzip, mut deflate, mut any, mut identity) = (None, None, None, None);
        for value in headers.get_all(ACCEPT_ENCODING) {
            for item in value.to_str().unwrap_or_default().split(',') {
                let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
                let name = name.trim();
                let slot = match Self::named(name) {
                    Some(Self::Gzip) => &mut gzip,
                    Some(Self::Deflate) => &mut deflate,
                    None if name == "*" => &mut any,
                    None if name.eq_ignore_ascii_case("identity") => &mut identity,
                    None => continue,
                };
                *slot = Some(weight(parameters));
            }
        }
        let of = |slot: Option<u16>| slot.or(any).unwrap_or(0);
        let (gzip, deflate) = (of(gzip), of(deflate));
        let best = gzip.max(deflate);
        if best == 0 || best < identity.unwrap_or(0) {
            return None;
        }
        Some(if gzip == best {
            Self::Gzip
        } else {
            Self::Deflate
        })
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// When it is not of this coding, or grows too large.
    pub(super) fn decode(self, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, CodingError> {
        let by_ratio = body.len().saturating_mul(RATIO_MAX).max(FREE_BYTES);
        let allowed = bytes_max.min(by_ratio);
        let decoded = match self {
            Self::Gzip => gunzip(body, allowed),
            Self::Deflate => inflate(body, allowed),
        };
        let decoded = decoded.ok_or(CodingError::Corrupt(self))?;
        match decoded.len() > allowed {
            false => Ok(decoded),
            true if allowed == bytes_max => Err(CodingError::TooLarge { bytes_max }),
            true => Err(CodingError::Bomb),
        }
    }

    /// Encodes an answer.
    pub(super) fn encode(self, body: &[u8]) -> Vec<u8> {
        let out = Vec::with_capacity(body.len() / 2);
        // Fast: what is left to gain costs several times as much of a serving thread.
        let level = Compression::fast();
        let written = match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(out, level);
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(out, level);
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
        };
        written.expect("memory can be written to")
    }

    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }
}

/// A quality in thousandths; 0 for what is none.
fn weight(parameters: &str) -> u16 {
    for parameter in parameters.split(';') {
        let Some((name, value)) = parameter.split_once('=') else {
            continue;
        };
        if name.trim().eq_ignore_ascii_case("q") {
            let quality: f32 = value.trim().parse().unwrap_or(0.0);
            return (quality.clamp(0.0, 1.0) * 1000.0) as u16;
        }
    }
    1000
}

/// At most one byte more than `allowed`; `None` where the data is not whole.
fn gunzip(body: &[u8], allowed: usize) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    MultiGzDecoder::new(body)
        .take(allowed as u64 + 1)
        .read_to_end(&mut decoded)
        .ok()?;
    Some(decoded)
}

/// As [`gunzip`]; the reader of this format would take a cut stream for a whole one.
fn inflate(body: &[u8], allowed: usize) -> Option<Vec<u8>> {
    const STEP_BYTES: usize = 64 << 10;
    let mut state = Decompress::new(true);
    let mut decoded = Vec::new();
    while decoded.len() <= allowed {
        if decoded.len() == decoded.capacity() {
            let step = decoded
                .len()
                .max(STEP_BYTES)
                .min(allowed + 1 - decoded.len());
            decoded.reserve_exact(step);
        }
        let rest = body.get(usize::try_from(state.total_in()).ok()?..)?;
        let before = (rest.len(), decoded.len());
        let status = state.decompress_vec(rest, &mut decoded, FlushDecompress::None);
        let rest = body.get(usize::try_from(state.total_in()).ok()?..)?;
        match status.ok()? {
            Status::StreamEnd => return rest.is_empty().then_some(decoded),
            Status::Ok | Status::BufError if (rest.len(), decoded.len()) == before => return None,
            Status::Ok | Status::BufError => {}
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn weights_decide_and_zero_means_never() {
        let chosen = |value: &str| Coding::of_answer(&headers(ACCEPT_ENCODING, value));
        let (gzip, deflate) = (Some(Coding::Gzip), Some(Coding::Deflate));
        for (value, expected) in [
            ("gzip", gzip),
            ("x-gzip", gzip),
            ("deflate", deflate),
            ("gzip, deflate", gzip),
            ("gzip;q=0.5, deflate;q=0.8", deflate),
            ("GZIP ; Q=1.0", gzip),
            ("gzip;q=0", None),
            ("gzip;q=0.0, deflate;q=0.000", None),
            ("gzip;q=0, deflate", deflate),
            ("*", gzip),
            ("*;q=0", None),
            ("gzip;q=0, *", deflate),
            ("br", None),
            ("identity", None),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.1, gzip;q=0.5", gzip),
            ("identity;q=0, deflate", deflate),
            ("gzip;q=nonsense", None),
            ("", None),
        ] {
            assert_eq!(chosen(value), expected, "{value}");
        }
        assert_eq!(Coding::of_answer(&HeaderMap::new()), None);
    }

    #[test]
    fn only_one_known_coding_is_taken() {
        let of = |value: &str| Coding::of_request(&headers(CONTENT_ENCODING, value));
        assert_eq!(of("gzip"), Ok(Some(Coding::Gzip)));
        assert_eq!(of("Deflate"), Ok(Some(Coding::Deflate)));
        assert_eq!(of("identity"), Ok(None));
        for refused in ["br", "gzip, gzip", "gzip, deflate", "zstd", "gzip;q=1"] {
            assert_eq!(of(refused), Err(CodingError::Unknown), "{refused}");
        }
    }

    #[test]
    fn bombs_are_cut_off() {
        let zeros = vec![0; 64 << 20];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let bomb = coding.encode(&zeros);
            assert_eq!(
                coding.decode(&bomb, usize::MAX >> 1),
                Err(CodingError::Bomb)
            );
            let bytes_max = 1 << 20;
            assert_eq!(
                coding.decode(&bomb, bytes_max),
                Err(CodingError::TooLarge { bytes_max })
            );
            let small = coding.encode(&zeros[..FREE_BYTES]);
            assert_eq!(
                coding.decode(&small, usize::MAX >> 1).unwrap().len(),
                FREE_BYTES
            );
        }
    }

    #[test]
    fn deflate_is_zlib_and_not_the_bare_stream() {
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(b"{\"inputs\":[]}").unwrap();
        let bare = bare.finish().unwrap();
        assert_eq!(
            Coding::Deflate.decode(&bare, 1000),
            Err(CodingError::Corrupt(Coding::Deflate))
        );
    }

    proptest! {
        #[test]
        fn bodies_come_back_whole_or_not_at_all(body in prop::collection::vec(any::<u8>(), 0..2000), cut in any::<prop::sample::Index>()) {
            for coding in [Coding::Gzip, Coding::Deflate] {
                let encoded = coding.encode(&body);
                prop_assert_eq!(coding.decode(&encoded, 2000), Ok(body.clone()));
                let cut = cut.index(encoded.len());
                prop_assert!(cut == 0 || coding.decode(&encoded[..cut], 2000).is_err());
                prop_assert!(coding.decode(&[&encoded[..], &b"x"[..]].concat(), 2000).is_err());
                if let Some(short) = body.len().checked_sub(1) {
                    prop_assert!(coding.decode(&encoded, short).is_err());
                }
            }
        }
    }
}
