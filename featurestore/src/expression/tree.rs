//! An expression as a tree, and its text.

use std::fmt;

use super::function::Function;
use super::token::is_bare;

/// A part of an expression and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) term: Term,
    /// In characters of the text, from 1
    pub(super) column: usize,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.term == other.term
    }
}

/// What a part of an expression is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Term {
    Int(i64),
    Number(f64),
    Bool(bool),
    Text(Box<str>),
    /// `at`: the request's moment
    Moment,
    /// A field of the request
    Field(Box<str>),
    /// `view:feature`
    Feature {
        view: Box<str>,
        feature: Box<str>,
    },
    Negate(Box<Node>),
    Not(Box<Node>),
    Binary(Operator, Box<[Node; 2]>),
    Call(Function, Vec<Node>),
    Bucket(Box<Node>, Vec<f64>),
}

/// A sign or word between two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    Unequal,
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// How tightly `not` binds: more than `and`, less than comparisons.
pub(super) const NOT: u8 = 3;
/// How tightly a sign binds: more than every operator.
pub(super) const SIGN: u8 = 7;
/// What needs no parentheses anywhere.
const ATOM: u8 = 8;

impl Operator {
    const ALL: [Self; 12] = [
        Self::Or,
        Self::And,
        Self::Less,
        Self::LessOrEqual,
        Self::Greater,
        Self::GreaterOrEqual,
        Self::Equal,
        Self::Unequal,
        Self::Add,
        Self::Subtract,
        Self::Multiply,
        Self::Divide,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Or => "or",
            Self::And => "and",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Equal => "==",
            Self::Unequal => "!=",
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
        }
    }

    pub(super) fn of_sign(sign: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operator| operator.as_str() == sign)
    }

    /// How tightly it binds; of equals the left one first.
    pub(super) fn binding(self) -> u8 {
        match self {
            Self::Or => 1,
            Self::And => 2,
            Self::Add | Self::Subtract => 5,
            Self::Multiply | Self::Divide => 6,
            _ => 4,
        }
    }

    /// `<` and its like, of which two cannot follow one another.
    pub(super) fn is_comparison(self) -> bool {
        self.binding() == 4
    }
}

/// Words that are no names.
pub(super) const RESERVED: [&str; 6] = ["and", "or", "not", "true", "false", "at"];

impl Term {
    fn binding(&self) -> u8 {
        match self {
            Self::Binary(operator, _) => operator.binding(),
            Self::Not(_) => NOT,
            Self::Negate(_) => SIGN,
            _ => ATOM,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.term {
            Term::Int(number) => write!(f, "{number}"),
            // With a dot or an exponent, and back to the same bits.
            Term::Number(number) => write!(f, "{number:?}"),
            Term::Bool(flag) => write!(f, "{flag}"),
            Term::Text(text) if text.contains('"') => write!(f, "'{text}'"),
            Term::Text(text) => write!(f, "\"{text}\""),
            Term::Moment => f.write_str("at"),
            Term::Field(name) if is_bare(name) && !RESERVED.contains(&&**name) => f.write_str(name),
            Term::Field(name) => write!(f, "`{name}`"),
            Term::Feature { view, feature } => {
                let name = format!("{view}:{feature}");
                match is_bare(&name) {
                    true => f.write_str(&name),
                    false => write!(f, "`{name}`"),
                }
            }
            Term::Negate(operand) => {
                f.write_str("-")?;
                operand.within(SIGN, f)
            }
            Term::Not(operand) => {
                f.write_str("not ")?;
                operand.within(NOT, f)
            }
            Term::Binary(operator, operands) => {
                let [left, right] = &**operands;
                let binding = operator.binding();
                left.within(binding + u8::from(operator.is_comparison()), f)?;
                write!(f, " {} ", operator.as_str())?;
                right.within(binding + 1, f)
            }
            Term::Call(function, arguments) => {
                write!(f, "{}(", function.as_str())?;
                for (place, argument) in arguments.iter().enumerate() {
                    f.write_str(if place == 0 { "" } else { ", " })?;
                    fmt::Display::fmt(argument, f)?;
                }
                f.write_str(")")
            }
            Term::Bucket(operand, bounds) => {
                let bounds: Vec<_> = bounds.iter().map(|bound| format!("{bound:?}")).collect();
                write!(f, "bucket({operand}, [{}])", bounds.join(", "))
            }
        }
    }
}

impl Node {
    /// In parentheses where it binds less tightly than `binding`.
    fn within(&self, binding: u8, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.term.binding() < binding {
            true => write!(f, "({self})"),
            false => fmt::Display::fmt(self, f),
        }
    }
}
