//! Routes as data: a listener's table is a constant, and from it come what a path names, which
//! methods it takes and what a caller needs. There is no way to a handler but through a row, and no
//! row without an [`Access`]. Rows are tried in order; a path of the table costs no allocation unless
//! it is percent-encoded.

use std::borrow::Cow;

use hyper::Method;

use crate::access::Access;

/// No path of ours is longer.
const SEGMENTS_MAX: usize = 8;

/// One row of a table.
#[derive(Debug)]
pub(crate) struct Route<T> {
    pub method: Method,
    /// Segments between slashes, without one at either end; `{name}` stands for any one segment.
    pub path: &'static str,
    pub access: Access,
    /// What the row leads to.
    pub to: T,
}

impl<T> Route<T> {
    pub(crate) const fn get(path: &'static str, access: Access, to: T) -> Self {
        Self {
            method: Method::GET,
            path,
            access,
            to,
        }
    }

    pub(crate) const fn post(path: &'static str, access: Access, to: T) -> Self {
        Self {
            method: Method::POST,
            path,
            access,
            to,
        }
    }
}

/// A row that a request names, and what the path says for the row's names.
#[derive(Debug)]
pub(crate) struct Found<'p, T: 'static> {
    pub route: &'static Route<T>,
    pub named: Named<'p>,
}

/// What a path says for each `{name}` of its route, percent-decoded.
#[derive(Debug)]
pub(crate) struct Named<'p> {
    path: &'static str,
    segments: [Cow<'p, str>; SEGMENTS_MAX],
}

impl Named<'_> {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut segments = self.path.split('/');
        let place = segments.position(|segment| name_of(segment) == Some(name))?;
        self.segments.get(place).map(AsRef::as_ref)
    }
}

/// Why a request names no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unrouted {
    /// The path is not percent-encoded UTF-8.
    Encoding,
    Path,
    /// The path takes these methods, as `Allow` lists them.
    Method {
        allowed: String,
    },
}

/// Finds the row that a request names, with or without a slash at the path's end. Segments are
/// decoded after they are split, so that an encoded slash stays part of a name.
///
/// # Errors
/// When there is no such row.
pub(crate) fn find<'p, T>(
    routes: &'static [Route<T>],
    method: &Method,
    path: &'p str,
) -> Result<Found<'p, T>, Unrouted> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments: [Cow<'p, str>; SEGMENTS_MAX] = Default::default();
    let mut count = 0;
    for segment in path.split('/') {
        let place = segments.get_mut(count).ok_or(Unrouted::Path)?;
        *place = percent_decoded(segment).ok_or(Unrouted::Encoding)?;
        count += 1;
    }
    let known = |route: &&Route<T>| fits(route.path, &segments[..count]);
    let mut allowed: Vec<&str> = Vec::new();
    for route in routes.iter().filter(known) {
        if route.method == *method {
            let path = route.path;
            let named = Named { path, segments };
            return Ok(Found { route, named });
        }
        if !allowed.contains(&route.method.as_str()) {
            allowed.push(route.method.as_str());
        }
    }
    Err(match allowed.is_empty() {
        true => Unrouted::Path,
        false => Unrouted::Method {
            allowed: allowed.join(", "),
        },
    })
}

fn fits(pattern: &str, segments: &[Cow<'_, str>]) -> bool {
    let mut pattern = pattern.split('/');
    let mut segments = segments.iter();
    loop {
        match (pattern.next(), segments.next()) {
            (None, None) => return true,
            (Some(known), Some(found)) if name_of(known).is_some() || known == found => {}
            _ => return false,
        }
    }
}

/// The name in `{name}`.
fn name_of(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

fn percent_decoded(segment: &str) -> Option<Cow<'_, str>> {
    match segment.contains('%') {
        false => Some(Cow::Borrowed(segment)),
        true => percent_decode(segment).map(Cow::Owned),
    }
}

/// Percent-decodes; `None` when it is cut short or not UTF-8.
pub(crate) fn percent_decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// A row as it can be shown.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Shown {
    pub listener: &'static str,
    pub method: String,
    pub path: String,
    pub access: &'static str,
}

/// The rows of a listener's table.
pub(crate) fn shown<T>(
    listener: &'static str,
    routes: &'static [Route<T>],
) -> impl Iterator<Item = Shown> {
    routes.iter().map(move |route| Shown {
        listener,
        method: route.method.to_string(),
        path: format!("/{}", route.path),
        access: route.access.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Scope;

    const ROUTES: &[Route<u8>] = &[
        Route::get("a", Access::Open, 0),
        Route::get("a/{x}", Access::Scoped(Scope::Predict), 1),
        Route::post("a/{x}", Access::Scoped(Scope::Write), 2),
        Route::post("a/{x}/b/{y}", Access::Scoped(Scope::Admin), 3),
    ];

    fn to(method: &Method, path: &str) -> Result<u8, Unrouted> {
        find(ROUTES, method, path).map(|found| found.route.to)
    }

    #[test]
    fn a_request_finds_its_row_by_path_and_method() {
        let found = find(ROUTES, &Method::POST, "/a/1%2F2/b/c/").unwrap();
        assert_eq!(found.route.to, 3);
        assert_eq!(found.named.get("x"), Some("1/2"));
        assert_eq!(
            (found.named.get("y"), found.named.get("z")),
            (Some("c"), None)
        );
        assert_eq!(to(&Method::GET, "/a/1"), Ok(1));
        assert_eq!(to(&Method::POST, "/a/1"), Ok(2));
        assert_eq!(to(&Method::GET, "/%61/"), Ok(0));
    }

    #[test]
    fn what_finds_none_is_told_why() {
        let allowed = |allowed: &str| {
            Err(Unrouted::Method {
                allowed: allowed.to_owned(),
            })
        };
        assert_eq!(to(&Method::PUT, "/a/1"), allowed("GET, POST"));
        assert_eq!(to(&Method::POST, "/a"), allowed("GET"));
        for path in [
            "",
            "/",
            "//",
            "/b",
            "/a//",
            "/a/1/b",
            "/a/1/b/2/3",
            "//a",
            "/a/1/b/2/3/4/5/6/7/8",
        ] {
            let found = to(&Method::POST, path);
            // `/a//` names an empty `x`, which no name allows.
            assert!(
                found == Err(Unrouted::Path) || path == "/a//",
                "{path}: {found:?}"
            );
        }
        assert_eq!(to(&Method::GET, "/a/%zz"), Err(Unrouted::Encoding));
    }
}
