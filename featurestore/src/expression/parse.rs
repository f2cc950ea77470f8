//! From words to a tree, by precedence: each operator takes what binds more tightly to its right.
//! Recursion ends at `DEPTH_MAX`, the tree at `NODES_MAX`.

use super::function::Function;
use super::token::{Token, Word};
use super::tree::{NOT, Node, Operator, SIGN, Term};
use super::{DEPTH_MAX, ExpressionError, NODES_MAX};
use crate::project_file::nearest;

/// The tree of a whole text; `tokens` ends with `Word::End`.
pub(super) fn parse(tokens: &[Token]) -> Result<Node, ExpressionError> {
    let mut parser = Parser {
        tokens,
        depth: 0,
        nodes: 0,
    };
    let root = parser.expression(0)?;
    match parser.word() {
        Word::End => Ok(root),
        _ => Err(parser.unexpected("an operator or the end")),
    }
}

struct Parser<'t> {
    /// What is left, the end included
    tokens: &'t [Token],
    depth: usize,
    nodes: usize,
}

impl Parser<'_> {
    /// What binds at least as tightly as `binding`.
    fn expression(&mut self, binding: u8) -> Result<Node, ExpressionError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error(format!("is nested deeper than {DEPTH_MAX}")));
        }
        let mut left = self.operand(binding)?;
        let mut compared = false;
        while let Some(operator) = self.operator() {
            if operator.binding() < binding {
                break;
            }
            if compared && operator.is_comparison() {
                let problem = "comparisons do not chain: write `a < b and b < c`";
                return Err(self.error(problem));
            }
            compared |= operator.is_comparison();
            let column = self.advance();
            let right = self.expression(operator.binding() + 1)?;
            left = self.node(Term::Binary(operator, Box::new([left, right])), column)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    /// A constant, name, call, or what stands in parentheses or behind a sign.
    fn operand(&mut self, binding: u8) -> Result<Node, ExpressionError> {
        let column = self.column();
        let term = match self.word().clone() {
            Word::Int(number) => Term::Int(number),
            Word::Number(number) => Term::Number(number),
            Word::Text(text) => Term::Text(text),
            Word::Quoted(name) => named(&name),
            Word::Bare(word) => match &*word {
                "true" => Term::Bool(true),
                "false" => Term::Bool(false),
                "at" => Term::Moment,
                "not" if binding > NOT => {
                    return Err(self.error("`not` stands in parentheses here"));
                }
                "not" => {
                    self.advance();
                    let operand = self.expression(NOT)?;
                    return self.node(Term::Not(Box::new(operand)), column);
                }
                "and" | "or" => return Err(self.unexpected("a value")),
                _ if self.tokens.get(1).is_some_and(is_opening) => return self.call(&word),
                _ => named(&word),
            },
            Word::Sign("-") => {
                self.advance();
                let operand = self.expression(SIGN)?;
                return self.node(Term::Negate(Box::new(operand)), column);
            }
            Word::Sign("(") => {
                self.advance();
                let inner = self.expression(0)?;
                self.expect(")")?;
                return Ok(inner);
            }
            _ => return Err(self.unexpected("a value")),
        };
        self.advance();
        self.node(term, column)
    }

    fn call(&mut self, name: &str) -> Result<Node, ExpressionError> {
        let Some(function) = Function::of_name(name) else {
            let known = Function::ALL.map(Function::as_str);
            return Err(ExpressionError {
                nearest: nearest(name, known),
                ..self.error(format!("unknown function `{name}`"))
            });
        };
        let column = self.advance();
        self.advance();
        let mut arguments = vec![self.expression(0)?];
        if function == Function::Bucket {
            self.expect(",")?;
            let bounds = self.bounds()?;
            self.expect(")")?;
            let operand = arguments.swap_remove(0);
            return self.node(Term::Bucket(Box::new(operand), bounds), column);
        }
        let [_, most] = function.arguments();
        while *self.word() == Word::Sign(",") && arguments.len() < most {
            self.advance();
            arguments.push(self.expression(0)?);
        }
        let [fewest, most] = function.arguments();
        let wrong = arguments.len() < fewest || *self.word() == Word::Sign(",");
        if wrong {
            let wanted = match (fewest, most) {
                (1, 1) => "one argument".to_owned(),
                (fewest, most) if fewest == most => format!("{most} arguments"),
                (fewest, most) => format!("{fewest} to {most} arguments"),
            };
            let problem = format!("`{name}` takes {wanted}");
            return Err(ExpressionError::new(column, problem));
        }
        self.expect(")")?;
        self.node(Term::Call(function, arguments), column)
    }

    /// `[b1, b2, …]`, rising.
    fn bounds(&mut self) -> Result<Vec<f64>, ExpressionError> {
        self.expect("[")?;
        let mut bounds: Vec<f64> = Vec::new();
        loop {
            let column = self.column();
            let negative = *self.word() == Word::Sign("-");
            if negative {
                self.advance();
            }
            let bound = match *self.word() {
                Word::Int(number) => number as f64,
                Word::Number(number) => number,
                _ => return Err(self.unexpected("a number")),
            };
            self.advance();
            let bound = if negative { -bound } else { bound };
            if bounds.last().is_some_and(|&last| last >= bound) {
                let problem = format!("`{bound}` is not above the bound before it");
                return Err(ExpressionError::new(column, problem));
            }
            bounds.push(bound);
            self.grow()?;
            if *self.word() != Word::Sign(",") {
                break;
            }
            self.advance();
        }
        self.expect("]")?;
        Ok(bounds)
    }

    fn operator(&self) -> Option<Operator> {
        match self.word() {
            Word::Sign(sign) => Operator::of_sign(sign),
            Word::Bare(word) => Operator::of_sign(word),
            _ => None,
        }
    }

    fn node(&mut self, term: Term, column: usize) -> Result<Node, ExpressionError> {
        self.grow()?;
        Ok(Node { term, column })
    }

    /// Counts a part.
    fn grow(&mut self) -> Result<(), ExpressionError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.error(format!("has more than {NODES_MAX} parts")));
        }
        Ok(())
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), ExpressionError> {
        if *self.word() != Word::Sign(sign) {
            return Err(self.unexpected(&format!("`{sign}`")));
        }
        self.advance();
        Ok(())
    }

    fn word(&self) -> &Word {
        self.tokens.first().map_or(&Word::End, |token| &token.word)
    }

    fn column(&self) -> usize {
        self.tokens.first().map_or(1, |token| token.column)
    }

    /// Leaves the current word behind, but never the end; answers its column.
    fn advance(&mut self) -> usize {
        let column = self.column();
        if let [_, rest @ ..] = self.tokens
            && !rest.is_empty()
        {
            self.tokens = rest;
        }
        column
    }

    fn unexpected(&self, wanted: &str) -> ExpressionError {
        let found = match self.word() {
            Word::Int(number) => format!("`{number}`"),
            Word::Number(number) => format!("`{number:?}`"),
            Word::Text(text) => format!("`\"{text}\"`"),
            Word::Bare(word) | Word::Quoted(word) => format!("`{word}`"),
            Word::Sign(sign) => format!("`{sign}`"),
            Word::End => "the end".to_owned(),
        };
        self.error(format!("expected {wanted}, found {found}"))
    }

    /// An error at the current word.
    fn error(&self, problem: impl Into<String>) -> ExpressionError {
        ExpressionError::new(self.column(), problem)
    }
}

fn is_opening(token: &Token) -> bool {
    token.word == Word::Sign("(")
}

/// A name of the request, or `view:feature`.
fn named(name: &str) -> Term {
    match name.split_once(':') {
        Some((view, feature)) => Term::Feature {
            view: view.into(),
            feature: feature.into(),
        },
        None => Term::Field(name.into()),
    }
}
