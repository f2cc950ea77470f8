//! Numbers and strings as JSON, appended to a buffer.

/// A whole number.
pub(crate) fn write_integer(out: &mut Vec<u8>, value: &(impl itoa::Integer + Copy)) {
    out.extend_from_slice(itoa::Buffer::new().format(*value).as_bytes());
}

/// The shortest text that reads back to the same bits, or the bare token of what is no number, as
/// the protocol's other servers write it.
pub(crate) fn write_float(out: &mut Vec<u8>, value: &(impl zmij::Float + Copy)) {
    let mut buffer = zmij::Buffer::new();
    out.extend_from_slice(match buffer.format(*value) {
        "inf" => b"Infinity",
        "-inf" => b"-Infinity",
        text => text.as_bytes(),
    });
}

/// A string, escaped where it must be.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    serde_json::to_writer(out, text).expect("a string can be written to memory");
}
