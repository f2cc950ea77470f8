//! An expression in the form that is evaluated: operations over a stack of fixed size.
//!
//! Both sides of an `if` are computed, since nothing has an effect; so there are no jumps, and what
//! a row costs depends on the expression alone.

use chrono::{DateTime, Datelike, Timelike};

use super::function::Function;
use super::resolve::Type;
use super::tree::Operator;
use crate::service::InView;
use crate::window::Status;

/// Values that may wait for one another.
pub(super) const STACK_MAX: usize = 32;

/// As many as nearly all expressions need; a stack of them costs less to lay out.
const STACK_USUAL: usize = 6;

/// What an expression is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `at`
    Moment,
    /// A field of the request, by its index
    Field {
        /// Index in `Service::request`
        field: usize,
        /// What its integers and strings are
        ty: Type,
    },
    /// A feature of a view
    Feature {
        /// Which
        at: InView,
        /// What its integers and strings are
        ty: Type,
    },
}

/// A value while it is computed with. Numbers are finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Datum<'a> {
    /// None, and why
    Missing(Status),
    /// A number
    Number(f64),
    /// A number that is compared with its like exactly
    Int(i64),
    /// True or false
    Bool(bool),
    /// A string
    Text(&'a str),
    /// Milliseconds since the Unix epoch
    Time(i64),
}

impl Datum<'_> {
    /// A number; what is not finite is `NullValue`.
    pub fn number(number: f64) -> Self {
        match number.is_finite() {
            true => Self::Number(number),
            false => Self::NULL,
        }
    }

    /// As a number.
    fn as_number(self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Int(number) => Some(number as f64),
            _ => None,
        }
    }

    const NULL: Self = Self::Missing(Status::NullValue);
}

/// An expression whose names and types are known. Equal where both compute the same way.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    ops: Box<[Op]>,
    /// Values that wait for one another, at most
    height: usize,
    ty: Type,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Number(f64),
    Int(i64),
    Bool(bool),
    Text(Box<str>),
    Load(Operand),
    Negate,
    Not,
    Binary(Operator),
    Bucket(Box<[f64]>),
    Call(Function, u8),
}

impl Program {
    pub(super) fn new(ops: Vec<Op>, height: usize, ty: Type) -> Self {
        let ops = ops.into_boxed_slice();
        Self { ops, height, ty }
    }

    /// What it yields.
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// What it is computed from, in the order of the text; repeated as often as it is named.
    pub fn operands(&self) -> impl Iterator<Item = Operand> {
        self.ops.iter().filter_map(|op| match op {
            Op::Load(operand) => Some(*operand),
            _ => None,
        })
    }

    /// Computes it; `read` gives the operands, each of the type that its scope said.
    pub fn run<'a>(&'a self, read: impl Fn(Operand) -> Datum<'a>) -> Datum<'a> {
        match self.height {
            ..=STACK_USUAL => self.run_on::<STACK_USUAL>(read),
            _ => self.run_on::<STACK_MAX>(read),
        }
    }

    fn run_on<'a, const SLOTS: usize>(&'a self, read: impl Fn(Operand) -> Datum<'a>) -> Datum<'a> {
        let mut stack = Stack {
            slots: [Datum::NULL; SLOTS],
            height: 0,
        };
        for op in &self.ops {
            let value = match op {
                Op::Number(number) => Datum::Number(*number),
                Op::Int(number) => Datum::Int(*number),
                Op::Bool(flag) => Datum::Bool(*flag),
                Op::Text(text) => Datum::Text(text),
                Op::Load(operand) => read(*operand),
                Op::Negate => negate(stack.pop()),
                Op::Not => match stack.pop() {
                    Datum::Bool(flag) => Datum::Bool(!flag),
                    other => missing(other),
                },
                Op::Binary(operator) => {
                    let right = stack.pop();
                    binary(*operator, stack.pop(), right)
                }
                Op::Bucket(bounds) => match stack.pop() {
                    value @ (Datum::Number(_) | Datum::Int(_)) => bucket(value, bounds),
                    other => missing(other),
                },
                Op::Call(function, count) => call(*function, stack.take(usize::from(*count))),
            };
            stack.push(value);
        }
        stack.pop()
    }
}

/// `resolve` has counted: it never grows over its slots, and no more is taken than was pushed.
struct Stack<'a, const SLOTS: usize> {
    slots: [Datum<'a>; SLOTS],
    height: usize,
}

impl<'a, const SLOTS: usize> Stack<'a, SLOTS> {
    fn push(&mut self, value: Datum<'a>) {
        self.slots[self.height] = value;
        self.height += 1;
    }

    fn pop(&mut self) -> Datum<'a> {
        self.height -= 1;
        self.slots[self.height]
    }

    fn take(&mut self, count: usize) -> &[Datum<'a>] {
        let end = self.height;
        self.height -= count;
        &self.slots[self.height..end]
    }
}

/// The status of a missing value. Types are known, so no other comes here.
fn missing(value: Datum<'_>) -> Datum<'_> {
    match value {
        Datum::Missing(_) => value,
        _ => Datum::NULL,
    }
}

fn negate(value: Datum<'_>) -> Datum<'_> {
    match value {
        Datum::Number(number) => Datum::Number(-number),
        Datum::Int(number) => number.checked_neg().map_or(Datum::NULL, Datum::Int),
        other => missing(other),
    }
}

fn binary<'a>(operator: Operator, left: Datum<'a>, right: Datum<'a>) -> Datum<'a> {
    if let (Datum::Missing(status), _) | (_, Datum::Missing(status)) = (left, right) {
        return Datum::Missing(status);
    }
    match operator {
        Operator::And | Operator::Or => match (left, right) {
            (Datum::Bool(left), Datum::Bool(right)) => Datum::Bool(match operator {
                Operator::And => left && right,
                _ => left || right,
            }),
            _ => Datum::NULL,
        },
        Operator::Add | Operator::Subtract | Operator::Multiply | Operator::Divide => {
            arithmetic(operator, left, right)
        }
        _ => match order(left, right) {
            Some(order) => Datum::Bool(match operator {
                Operator::Less => order.is_lt(),
                Operator::LessOrEqual => order.is_le(),
                Operator::Greater => order.is_gt(),
                Operator::GreaterOrEqual => order.is_ge(),
                Operator::Equal => order.is_eq(),
                _ => order.is_ne(),
            }),
            None => Datum::NULL,
        },
    }
}

fn arithmetic<'a>(operator: Operator, left: Datum<'a>, right: Datum<'a>) -> Datum<'a> {
    let (Some(left), Some(right)) = (left.as_number(), right.as_number()) else {
        return Datum::NULL;
    };
    Datum::number(match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        _ => left / right,
    })
}

fn order(left: Datum<'_>, right: Datum<'_>) -> Option<std::cmp::Ordering> {
    match (left, right) {
        (Datum::Int(left), Datum::Int(right)) | (Datum::Time(left), Datum::Time(right)) => {
            Some(left.cmp(&right))
        }
        (Datum::Bool(left), Datum::Bool(right)) => Some(left.cmp(&right)),
        (Datum::Text(left), Datum::Text(right)) => Some(left.cmp(right)),
        (left, right) => left.as_number()?.partial_cmp(&right.as_number()?),
    }
}

fn bucket<'a>(value: Datum<'_>, bounds: &[f64]) -> Datum<'a> {
    let below = |value: f64| bounds.partition_point(|&bound| bound <= value);
    let place = value.as_number().map(below);
    // At most `NODES_MAX` bounds.
    place.map_or(Datum::NULL, |place| Datum::Int(place as i64))
}

fn call<'a>(function: Function, arguments: &[Datum<'a>]) -> Datum<'a> {
    match (function, arguments) {
        (Function::If, &[Datum::Bool(condition), yes, no]) => match condition {
            true => yes,
            false => no,
        },
        (Function::If, &[condition, ..]) => missing(condition),
        (Function::Coalesce, arguments) => {
            let is_there = |value: &&Datum<'_>| !matches!(value, Datum::Missing(_));
            let found = arguments.iter().find(is_there).or(arguments.first());
            found.copied().unwrap_or(Datum::NULL)
        }
        (Function::Present, &[value]) => Datum::Bool(!matches!(value, Datum::Missing(_))),
        (_, arguments) => {
            let is_missing = |value: &&Datum<'_>| matches!(value, Datum::Missing(_));
            match arguments.iter().find(is_missing) {
                Some(&missing) => missing,
                None => of_present(function, arguments),
            }
        }
    }
}

fn of_present<'a>(function: Function, arguments: &[Datum<'a>]) -> Datum<'a> {
    if let &[Datum::Time(from), ref rest @ ..] = arguments {
        return of_times(function, from, rest);
    }
    let mut numbers = arguments.iter().filter_map(|value| value.as_number());
    let Some(first) = numbers.next() else {
        return Datum::NULL;
    };
    match function {
        Function::Abs => Datum::Number(first.abs()),
        Function::Min => Datum::Number(numbers.fold(first, least)),
        Function::Max => Datum::Number(numbers.fold(first, greatest)),
        Function::Clip => {
            let low = numbers.next().unwrap_or(first);
            let high = numbers.next().unwrap_or(first);
            Datum::Number(least(greatest(first, low), high))
        }
        Function::Log1p => Datum::number(first.ln_1p()),
        _ => Datum::NULL,
    }
}

/// As `f64::min`, but of two zeros always the same one, the first.
fn least(a: f64, b: f64) -> f64 {
    if b < a { b } else { a }
}

fn greatest(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
}

fn of_times<'a>(function: Function, from_ms: i64, rest: &[Datum<'a>]) -> Datum<'a> {
    if let (Function::HoursBetween, &[Datum::Time(to_ms)]) = (function, rest) {
        return Datum::Number(to_ms.saturating_sub(from_ms) as f64 / HOUR_MS);
    }
    let Some(time) = DateTime::from_timestamp_millis(from_ms) else {
        return Datum::NULL;
    };
    let part = match function {
        Function::Hour => time.hour(),
        Function::DayOfWeek => time.weekday().number_from_monday(),
        Function::DayOfMonth => time.day(),
        Function::Month => time.month(),
        _ => return Datum::NULL,
    };
    Datum::Int(i64::from(part))
}

/// Milliseconds in the unit of `hours_between`.
const HOUR_MS: f64 = 3_600_000.0;
