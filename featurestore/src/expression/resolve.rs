//! Names and types: from a tree to a program.

use super::function::Function;
use super::program::{Op, Operand, Program, STACK_MAX};
use super::tree::{Node, Operator, Term};
use super::{Expression, ExpressionError};
use crate::value::FieldType;

/// What a part of an expression yields, where it is not missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A float, or an integer, which is exact until it is computed with
    Number,
    /// True or false
    Bool,
    /// A string
    Text,
    /// A moment
    Time,
}

impl Type {
    /// The name in errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Bool => "a bool",
            Self::Text => "a string",
            Self::Time => "a time",
        }
    }

    /// What values of a field are in an expression.
    pub fn of_field(ty: FieldType) -> Self {
        match ty {
            FieldType::Int | FieldType::Float => Self::Number,
            FieldType::Bool => Self::Bool,
            FieldType::String => Self::Text,
            FieldType::Time => Self::Time,
        }
    }
}

/// The names that an expression may use.
pub trait Scope {
    /// The field of the request of that name.
    fn field(&mut self, name: &str) -> Result<(Operand, Type), Unknown>;

    /// The feature of a view (`name` or `name@version`).
    fn feature(&mut self, view: &str, feature: &str) -> Result<(Operand, Type), Unknown>;
}

/// A name that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// What is wrong
    pub problem: String,
    /// The known name that looks most like it
    pub nearest: Option<String>,
}

pub(super) fn resolve(root: &Node, scope: &mut dyn Scope) -> Result<Program, ExpressionError> {
    let mut resolver = Resolver {
        scope,
        ops: Vec::new(),
        height: 0,
        highest: 0,
    };
    let ty = resolver.node(root)?;
    Ok(Program::new(resolver.ops, resolver.highest, ty))
}

struct Resolver<'s> {
    scope: &'s mut dyn Scope,
    ops: Vec<Op>,
    /// Values on the stack behind the last operation
    height: usize,
    /// The most that it was
    highest: usize,
}

impl Resolver<'_> {
    /// Appends what computes `node`. Recurses as deep as the tree is, `NODES_MAX` at most.
    fn node(&mut self, node: &Node) -> Result<Type, ExpressionError> {
        match &node.term {
            Term::Int(number) => self.push(Op::Int(*number), Type::Number, node),
            Term::Number(number) => self.push(Op::Number(*number), Type::Number, node),
            Term::Bool(flag) => self.push(Op::Bool(*flag), Type::Bool, node),
            Term::Text(text) => self.push(Op::Text(text.clone()), Type::Text, node),
            Term::Moment => self.moment(node),
            Term::Field(name) => {
                let found = self.scope.field(name);
                self.load(found, node)
            }
            Term::Feature { view, feature } => {
                let found = self.scope.feature(view, feature);
                self.load(found, node)
            }
            Term::Negate(operand) => {
                self.typed(operand, Type::Number, "`-`")?;
                Ok(self.apply(Op::Negate, 1, Type::Number))
            }
            Term::Not(operand) => {
                self.typed(operand, Type::Bool, "`not`")?;
                Ok(self.apply(Op::Not, 1, Type::Bool))
            }
            Term::Binary(operator, operands) => self.binary(*operator, operands),
            Term::Call(function, arguments) => self.call(*function, arguments),
            Term::Bucket(operand, bounds) => {
                self.typed(operand, Type::Number, "`bucket`")?;
                let bounds = bounds.clone().into_boxed_slice();
                Ok(self.apply(Op::Bucket(bounds), 1, Type::Number))
            }
        }
    }

    fn binary(
        &mut self,
        operator: Operator,
        operands: &[Node; 2],
    ) -> Result<Type, ExpressionError> {
        let [left, right] = operands;
        let sign = format!("`{}`", operator.as_str());
        let ty = match operator {
            Operator::And | Operator::Or => {
                self.typed(left, Type::Bool, &sign)?;
                self.typed(right, Type::Bool, &sign)?;
                Type::Bool
            }
            Operator::Equal | Operator::Unequal => {
                let of_left = self.node(left)?;
                self.typed(right, of_left, &sign)?;
                Type::Bool
            }
            operator if operator.is_comparison() => {
                let of_left = self.node(left)?;
                if !matches!(of_left, Type::Number | Type::Time) {
                    let problem =
                        format!("{sign} compares numbers or times, not {}", of_left.as_str());
                    return Err(ExpressionError::new(left.column, problem));
                }
                self.typed(right, of_left, &sign)?;
                Type::Bool
            }
            _ => {
                self.typed(left, Type::Number, &sign)?;
                self.typed(right, Type::Number, &sign)?;
                Type::Number
            }
        };
        Ok(self.apply(Op::Binary(operator), 2, ty))
    }

    fn call(&mut self, function: Function, arguments: &[Node]) -> Result<Type, ExpressionError> {
        let name = format!("`{}`", function.as_str());
        let ty = match (function, arguments) {
            (Function::If, [condition, branches @ ..]) => {
                self.typed(condition, Type::Bool, &name)?;
                self.alike(branches, &name)?
            }
            (Function::Coalesce, arguments) => self.alike(arguments, &name)?,
            (Function::Present, arguments) => {
                self.alike(arguments, &name)?;
                Type::Bool
            }
            (
                Function::Hour
                | Function::DayOfWeek
                | Function::DayOfMonth
                | Function::Month
                | Function::HoursBetween,
                arguments,
            ) => {
                for argument in arguments {
                    self.typed(argument, Type::Time, &name)?;
                }
                Type::Number
            }
            (_, arguments) => {
                for argument in arguments {
                    self.typed(argument, Type::Number, &name)?;
                }
                Type::Number
            }
        };
        let count = u8::try_from(arguments.len()).expect("a call has 16 arguments at most");
        Ok(self.apply(Op::Call(function, count), usize::from(count), ty))
    }

    /// Operands of one type, whichever.
    fn alike(&mut self, operands: &[Node], name: &str) -> Result<Type, ExpressionError> {
        let [first, others @ ..] = operands else {
            unreachable!("every function has an argument of any type");
        };
        let ty = self.node(first)?;
        for other in others {
            self.typed(other, ty, name)?;
        }
        Ok(ty)
    }

    fn typed(&mut self, node: &Node, wanted: Type, by: &str) -> Result<(), ExpressionError> {
        let found = self.node(node)?;
        if found == wanted {
            return Ok(());
        }
        let text = Expression { root: node.clone() }.to_string();
        let problem = format!(
            "{by} takes {} here, `{text}` is {}",
            wanted.as_str(),
            found.as_str()
        );
        Err(ExpressionError::new(node.column, problem))
    }

    fn moment(&mut self, node: &Node) -> Result<Type, ExpressionError> {
        if self.scope.field("at").is_ok() {
            let problem = "`at` is the request's moment and a field of the request: write the field as ``at``";
            return Err(ExpressionError::new(node.column, problem));
        }
        self.push(Op::Load(Operand::Moment), Type::Time, node)
    }

    fn load(
        &mut self,
        found: Result<(Operand, Type), Unknown>,
        node: &Node,
    ) -> Result<Type, ExpressionError> {
        let (operand, ty) = found.map_err(|unknown| ExpressionError {
            column: node.column,
            problem: unknown.problem,
            nearest: unknown.nearest,
        })?;
        self.push(Op::Load(operand), ty, node)
    }

    fn push(&mut self, op: Op, ty: Type, node: &Node) -> Result<Type, ExpressionError> {
        self.height += 1;
        self.highest = self.highest.max(self.height);
        if self.height > STACK_MAX {
            let problem = format!("more than {STACK_MAX} values wait for one another here");
            return Err(ExpressionError::new(node.column, problem));
        }
        self.ops.push(op);
        Ok(ty)
    }

    /// An operation that takes `count` values and leaves one.
    fn apply(&mut self, op: Op, count: usize, ty: Type) -> Type {
        self.height = self.height + 1 - count;
        self.ops.push(op);
        ty
    }
}
