//! A reader of HTTP/1.1 responses that looks at the status, the length and `connection` and nothing
//! else. It parses a whole response or asks for more bytes; it copies nothing.

/// Bytes of a head beyond which a server is not believed.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A whole response at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'b> {
    pub status: u16,
    /// As it came, with its chunk sizes where it was chunked.
    pub body: &'b [u8],
    /// Bytes of the buffer that it took.
    pub length: usize,
    /// Whether the server keeps the connection.
    pub keeps: bool,
}

/// What cannot be read as a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

enum Framing {
    Length(usize),
    Chunked,
}

/// The response at the front of `bytes`, or `None` while it is not all there.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Reply<'_>>, Malformed> {
    let Some(head_end) = find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX {
            Err(Malformed)
        } else {
            Ok(None)
        };
    };
    let head = &bytes[..head_end];
    let status = status(head)?;
    let (mut framing, mut keeps) = (Framing::Length(0), true);
    for line in head.split(|&byte| byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(value) = value_of(line, b"content-length") {
            framing = Framing::Length(decimal(value)?);
        } else if let Some(value) = value_of(line, b"transfer-encoding") {
            if value.eq_ignore_ascii_case(b"chunked") {
                framing = Framing::Chunked;
            }
        } else if let Some(value) = value_of(line, b"connection") {
            keeps = !value.eq_ignore_ascii_case(b"close");
        }
    }
    let start = head_end + 4;
    let length = match framing {
        Framing::Length(length) => Some(length),
        Framing::Chunked => chunked(&bytes[start..])?,
    };
    Ok(length.and_then(|length| {
        let body = bytes.get(start..start.checked_add(length)?)?;
        Some(Reply {
            status,
            body,
            length: start + length,
            keeps,
        })
    }))
}

fn status(head: &[u8]) -> Result<u16, Malformed> {
    match head {
        [
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            _,
            b' ',
            a,
            b,
            c,
            ..,
        ] if [a, b, c].iter().all(|digit| digit.is_ascii_digit()) => {
            let digit = |byte: &u8| u16::from(byte - b'0');
            Ok(digit(a) * 100 + digit(b) * 10 + digit(c))
        }
        _ => Err(Malformed),
    }
}

/// The trimmed value of a header line, if it is that header's.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let rest = line.get(name.len()..)?;
    let named = line[..name.len()].eq_ignore_ascii_case(name) && rest.first() == Some(&b':');
    named.then(|| rest[1..].trim_ascii())
}

fn decimal(text: &[u8]) -> Result<usize, Malformed> {
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

/// Bytes of a chunked body up to the end of its last chunk, or `None` while that is not there.
fn chunked(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes[at..at + line]).map_err(|_| Malformed)?;
        let digits = text.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| Malformed)?;
        at = (at + line + 2)
            .checked_add(size)
            .and_then(|end| end.checked_add(2))
            .ok_or(Malformed)?;
        if at > bytes.len() {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-LENGTH: 5\r\n\r\nhellonext";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 429 Too Many\r\ntransfer-encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

    #[test]
    fn length_and_chunks_end_a_response() {
        let reply = read(PLAIN).unwrap().unwrap();
        assert_eq!(
            (reply.status, reply.body, reply.keeps),
            (200, &b"hello"[..], true)
        );
        assert_eq!(&PLAIN[reply.length..], b"next");
        let reply = read(CHUNKED).unwrap().unwrap();
        assert_eq!((reply.status, reply.keeps), (429, false));
        assert_eq!(reply.length, CHUNKED.len());
    }

    #[test]
    fn what_is_no_response_is_malformed() {
        assert_eq!(read(b"SSH-2.0\r\n\r\n"), Err(Malformed));
        assert_eq!(read(b"HTTP/1.1 2x0 OK\r\n\r\n"), Err(Malformed));
        assert_eq!(
            read(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
            Err(Malformed)
        );
    }

    proptest! {
        #[test]
        fn a_part_of_a_response_asks_for_more(cut in 0usize..1000) {
            for whole in [&PLAIN[..PLAIN.len() - 4], CHUNKED] {
                let part = &whole[..cut % whole.len()];
                prop_assert_eq!(read(part), Ok(None));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            answer.extend_from_slice(&bytes);
            for input in [&bytes, &answer] {
                if let Ok(Some(reply)) = read(input) {
                    prop_assert!(reply.length <= input.len());
                }
            }
        }
    }
}
