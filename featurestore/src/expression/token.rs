//! Words and signs of an expression's text. Reads any text without a panic.

use super::{ExpressionError, TEXT_BYTES_MAX};

/// One word or sign.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Word {
    /// `3`
    Int(i64),
    /// `1.5`, `1e-3`
    Number(f64),
    /// `"AA"` or `'AA'`
    Text(Box<str>),
    /// `amount`, `view:feature`, `view@1:feature`, `and`
    Bare(Box<str>),
    /// `` `a-name` ``
    Quoted(Box<str>),
    /// `+`, `<=`, `(` …
    Sign(&'static str),
    End,
}

/// A word and its place in the text.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) word: Word,
    pub(super) column: usize,
}

/// Longer signs before those that they begin with.
const SIGNS: [&str; 16] = [
    "<=", ">=", "==", "!=", "<", ">", "+", "-", "*", "/", "(", ")", "[", "]", ",", "=",
];

/// The words of `text` and an end.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ExpressionError> {
    if text.len() > TEXT_BYTES_MAX {
        let problem = format!("{} bytes, at most {TEXT_BYTES_MAX} are read", text.len());
        return Err(ExpressionError::new(1, problem));
    }
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let column = 1 + text[..text.len() - rest.len()].chars().count();
        if rest.is_empty() {
            let word = Word::End;
            tokens.push(Token { word, column });
            return Ok(tokens);
        }
        let (word, bytes) = word(rest).map_err(|problem| ExpressionError::new(column, problem))?;
        tokens.push(Token { word, column });
        rest = &rest[bytes..];
    }
}

/// The first word of a text that does not begin with white space, and its length.
fn word(rest: &str) -> Result<(Word, usize), String> {
    let first = rest.chars().next().unwrap_or_default();
    match first {
        '0'..='9' => number(rest),
        '"' | '\'' | '`' => quoted(rest, first),
        first if starts_name(first) => {
            let bytes = bare_length(rest);
            Ok((Word::Bare(rest[..bytes].into()), bytes))
        }
        _ => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(&"=") => Err("`=` is written `==`".to_owned()),
            Some(sign) => Ok((Word::Sign(sign), sign.len())),
            None => Err(format!("`{}` has no meaning here", first.escape_debug())),
        },
    }
}

fn number(rest: &str) -> Result<(Word, usize), String> {
    let digits = |from: usize| {
        let bytes = rest.as_bytes()[from..].iter();
        from + bytes.take_while(|byte| byte.is_ascii_digit()).count()
    };
    let mut end = digits(0);
    let whole = end;
    if rest[end..].starts_with('.') && digits(end + 1) > end + 1 {
        end = digits(end + 1);
    }
    if rest[end..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        let exponent = end + 1 + sign;
        if digits(exponent) > exponent {
            end = digits(exponent);
        }
    }
    let text = &rest[..end];
    if rest[end..].starts_with(|c: char| starts_name(c) || c == '.') {
        return Err(format!("`{text}` and a letter or dot are no number"));
    }
    if let (true, Ok(int)) = (end == whole, text.parse()) {
        return Ok((Word::Int(int), end));
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((Word::Number(number), end)),
        _ => Err(format!("`{text}` is not a finite number")),
    }
}

fn quoted(rest: &str, quote: char) -> Result<(Word, usize), String> {
    let Some((inner, _)) = rest[1..].split_once(quote) else {
        return Err(format!("a second {quote} is missing"));
    };
    let word = match quote {
        '`' if inner.is_empty() => return Err("a name is missing between ` and `".to_owned()),
        '`' => Word::Quoted(inner.into()),
        _ => Word::Text(inner.into()),
    };
    Ok((word, inner.len() + 2))
}

fn starts_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

/// The length of the name that `text` begins with: letters, digits, `_` and `.`, then perhaps `@` and
/// a version, then perhaps `:` and the name of a feature.
fn bare_length(text: &str) -> usize {
    let run = |from: usize, takes: fn(u8) -> bool| {
        let bytes = text.as_bytes()[from..].iter();
        from + bytes.take_while(|&&byte| takes(byte)).count()
    };
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    let mut end = run(0, inside);
    if text[end..].starts_with('@') {
        let version = run(end + 1, |byte| byte.is_ascii_digit());
        if version > end + 1 {
            end = version;
        }
    }
    if text[end..].starts_with(':') && text[end + 1..].starts_with(starts_name) {
        end = run(end + 1, inside);
    }
    end
}

/// Whether `name` is read as one name without backticks.
pub(super) fn is_bare(name: &str) -> bool {
    name.starts_with(starts_name) && bare_length(name) == name.len()
}
