//! Derived features: a small language over features of views and a request's fields.
//!
//! Three stages. `Expression::parse` reads a text into a tree (bounded in size and depth), `resolve`
//! finds its names, checks its types and gives a `Program`, and `Program::run` computes one row on a
//! fixed stack, without an allocation. No clock, no state, no host code: a
//! value depends on the row, the request and its moment alone.
//! What is missing stays missing and says why: an operation answers the status of its first missing
//! operand. What is no number (`1 / 0`, `log1p(-2)`, an overflow) is `NULL_VALUE`.

mod function;
mod parse;
mod program;
mod resolve;
mod token;
mod tree;

use std::fmt;

use thiserror::Error;

pub use self::function::Function;
pub use self::program::{Datum, Operand, Program};
pub use self::resolve::{Scope, Type, Unknown};

/// The longest text, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// The most operations, names and constants of one expression.
pub const NODES_MAX: usize = 256;

/// The deepest nesting of parentheses, calls and signs.
pub const DEPTH_MAX: usize = 32;

/// An expression as written. Equal to another where both mean the same tree; places in the text do
/// not count. `Display` writes it with no more parentheses than it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    root: tree::Node,
}

/// Why a text is no expression, or means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("column {column}: {problem}")]
pub struct ExpressionError {
    /// Place in the text, in characters from 1
    pub column: usize,
    /// What is wrong
    pub problem: String,
    /// The known name that looks most like the unknown one
    pub nearest: Option<String>,
}

impl ExpressionError {
    fn new(column: usize, problem: impl Into<String>) -> Self {
        Self {
            column,
            problem: problem.into(),
            nearest: None,
        }
    }
}

impl Expression {
    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let root = parse::parse(&token::tokens(text)?)?;
        Ok(Self { root })
    }

    /// Finds every name in `scope` and checks every type.
    pub fn resolve(&self, scope: &mut dyn Scope) -> Result<Program, ExpressionError> {
        resolve::resolve(&self.root, scope)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}
