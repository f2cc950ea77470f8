//! The walk over all messages of a file, with an explicit stack.

use std::ops::Range;

use super::findings::Findings;
use super::schema::{Message, Rule, field, rule};
use super::wire::{Field, Payload, Reader, malformed};
use super::{CheckError, OnnxLimits};

/// Walks the whole file and gives what was found in it.
pub(super) fn walk<'a>(bytes: &'a [u8], limits: &OnnxLimits) -> Result<Findings<'a>, CheckError> {
    let mut walk = Walk {
        reader: Reader::new(bytes),
        limits,
        stack: Vec::with_capacity(limits.depth_max),
        findings: Findings::default(),
        messages: 0,
        strings: 0,
    };
    walk.open(Message::Model, 0, 0..bytes.len())?;
    while let Some(frame) = walk.stack.last() {
        if walk.reader.position() < frame.end {
            walk.step()?;
        } else {
            walk.close()?;
        }
    }
    Ok(walk.findings)
}

/// A message that is open.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) message: Message,
    /// The number of the field in the parent.
    pub(super) field: u32,
    end: usize,
    /// Single fields that were seen, by number; all numbers of the schema are below 64.
    seen: u64,
    /// A node's operator, domain, name and first output, in whatever order they come.
    pub(super) node: NodeDraft<'a>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NodeDraft<'a> {
    pub(super) operator: &'a str,
    pub(super) domain: &'a str,
    pub(super) name: &'a str,
    pub(super) output: &'a str,
}

struct Walk<'a, 'l> {
    reader: Reader<'a>,
    limits: &'l OnnxLimits,
    stack: Vec<Frame<'a>>,
    findings: Findings<'a>,
    messages: usize,
    strings: usize,
}

impl<'a> Walk<'a, '_> {
    fn step(&mut self) -> Result<(), CheckError> {
        let Some(frame) = self.stack.last_mut() else {
            return Ok(());
        };
        let message = frame.message;
        let Field {
            number,
            payload,
            at,
        } = self.reader.field(frame.end)?;
        let rule = rule(message, number)
            .ok_or_else(|| malformed(at, format!("unknown field {number} of a {message:?}")))?;
        if rule.is_single() {
            let bit = 1_u64 << (number & 63);
            if frame.seen & bit != 0 {
                let problem = format!("field {number} of a {message:?} comes twice");
                return Err(malformed(at, problem));
            }
            frame.seen |= bit;
        }
        match (rule, payload) {
            (Rule::Unsupported(what), _) => Err(CheckError::Unsupported { what: what.into() }),
            (Rule::NoTensor(what), _) => Err(self.findings.no_tensor(what)),
            (Rule::One(child) | Rule::Many(child), Payload::Bytes(range)) => {
                self.open(child, number, range)
            }
            (Rule::Int, Payload::Varint(value)) => self.integer(number, value.cast_signed()),
            (Rule::Ints, Payload::Varint(value)) => self.integers(number, &[value.cast_signed()]),
            (Rule::Ints, Payload::Bytes(range)) => self.packed(number, &range),
            (Rule::Float, Payload::Fixed32) => Ok(()),
            (Rule::Floats, Payload::Fixed32) | (Rule::Doubles, Payload::Fixed64) => {
                self.elements(number, 1);
                Ok(())
            }
            (Rule::Floats, Payload::Bytes(range)) => self.fixed(number, &range, 4),
            (Rule::Doubles, Payload::Bytes(range)) => self.fixed(number, &range, 8),
            (Rule::Text | Rule::Texts, Payload::Bytes(range)) => {
                let text = std::str::from_utf8(self.reader.slice(&range))
                    .map_err(|_| malformed(at, "text that is not utf-8".to_owned()))?;
                self.text(number, text, rule == Rule::Texts)
            }
            (Rule::Bytes, Payload::Bytes(range)) => {
                if (message, number) == (Message::Tensor, field::TENSOR_RAW) {
                    self.findings.tensor.raw_bytes = Some(range.len());
                }
                Ok(())
            }
            (Rule::ManyBytes, Payload::Bytes(_)) => {
                self.elements(number, 1);
                self.count_string()
            }
            _ => Err(malformed(
                at,
                format!("field {number} of a {message:?} has another wire type"),
            )),
        }
    }

    fn open(
        &mut self,
        message: Message,
        field: u32,
        range: Range<usize>,
    ) -> Result<(), CheckError> {
        let limit = |what, max| Err(CheckError::Limit { what, max });
        if self.stack.len() >= self.limits.depth_max {
            return limit("messages inside one another", self.limits.depth_max);
        }
        self.messages += 1;
        if self.messages > self.limits.messages_max {
            return limit("protobuf messages", self.limits.messages_max);
        }
        match message {
            Message::Node => {
                self.findings.nodes += 1;
                if self.findings.nodes > self.limits.nodes_max {
                    return limit("nodes", self.limits.nodes_max);
                }
            }
            Message::Tensor => {
                self.findings.tensors += 1;
                if self.findings.tensors > self.limits.tensors_max {
                    return limit("tensors", self.limits.tensors_max);
                }
            }
            _ => {}
        }
        self.findings.open(message, field);
        self.reader.seek(range.start);
        self.stack.push(Frame {
            message,
            field,
            end: range.end,
            seen: 0,
            node: NodeDraft::default(),
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), CheckError> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        // A graph's own parts hang below model and graph: two frames when they close.
        let is_main = self.stack.len() == 2;
        self.findings.close(&frame, is_main)
    }

    fn integer(&mut self, number: u32, value: i64) -> Result<(), CheckError> {
        match (self.message(), number) {
            (Some(Message::Model), field::MODEL_IR_VERSION) => {
                self.findings.ir_version = Some(value);
            }
            (Some(Message::Tensor), field::TENSOR_TYPE) => self.findings.tensor.datatype = value,
            (Some(Message::Tensor), field::TENSOR_LOCATION) if value != 0 => {
                self.findings.tensor.is_external = true;
            }
            (Some(Message::TensorType), field::ELEMENT_TYPE) => {
                self.findings.value.datatype = value
            }
            (Some(Message::Dimension), field::DIMENSION_VALUE) => {
                self.findings.value.dimension = value;
            }
            (Some(Message::Opset), field::OPSET_VERSION) => self.findings.opset.1 = value,
            _ => {}
        }
        Ok(())
    }

    fn integers(&mut self, number: u32, values: &[i64]) -> Result<(), CheckError> {
        if (self.message(), number) == (Some(Message::Tensor), field::TENSOR_DIMS) {
            let dims = &mut self.findings.tensor.dims;
            dims.extend_from_slice(values);
            if dims.len() > self.limits.rank_max {
                return Err(CheckError::Limit {
                    what: "axes in one tensor",
                    max: self.limits.rank_max,
                });
            }
        } else {
            self.elements(number, values.len());
        }
        Ok(())
    }

    fn packed(&mut self, number: u32, range: &Range<usize>) -> Result<(), CheckError> {
        self.reader.seek(range.start);
        while self.reader.position() < range.end {
            let value = self.reader.varint(range.end)?;
            self.integers(number, &[value.cast_signed()])?;
        }
        Ok(())
    }

    fn fixed(&mut self, number: u32, range: &Range<usize>, size: usize) -> Result<(), CheckError> {
        if !range.len().is_multiple_of(size) {
            let problem = format!("{} bytes of elements of {size}", range.len());
            return Err(malformed(range.start, problem));
        }
        self.elements(number, range.len() / size);
        Ok(())
    }

    fn elements(&mut self, number: u32, count: usize) {
        if self.message() == Some(Message::Tensor) {
            self.findings.tensor.add(number, count);
        }
    }

    fn text(&mut self, number: u32, text: &'a str, is_repeated: bool) -> Result<(), CheckError> {
        if is_repeated {
            self.count_string()?;
        }
        let is_main = self.stack.len() == 3;
        let Some(frame) = self.stack.last_mut() else {
            return Ok(());
        };
        match (frame.message, number) {
            (Message::Node, field::NODE_NAME) => frame.node.name = text,
            (Message::Node, field::NODE_OPERATOR) => frame.node.operator = text,
            (Message::Node, field::NODE_DOMAIN) => frame.node.domain = text,
            (Message::Node, field::NODE_OUTPUT) => {
                if frame.node.output.is_empty() {
                    frame.node.output = text;
                }
                if is_main && !text.is_empty() {
                    self.findings.define(text)?;
                }
            }
            (Message::Tensor, field::TENSOR_NAME) => self.findings.tensor.name = text,
            (Message::Value, field::VALUE_NAME) => self.findings.value.name = text,
            (Message::Opset, field::OPSET_DOMAIN) => self.findings.opset.0 = text,
            (Message::Property, field::PROPERTY_KEY) => self.findings.property = text,
            _ => {}
        }
        Ok(())
    }

    fn count_string(&mut self) -> Result<(), CheckError> {
        self.strings += 1;
        if self.strings > self.limits.strings_max {
            return Err(CheckError::Limit {
                what: "strings",
                max: self.limits.strings_max,
            });
        }
        Ok(())
    }

    fn message(&self) -> Option<Message> {
        self.stack.last().map(|frame| frame.message)
    }
}
