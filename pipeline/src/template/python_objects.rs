//! Values that Python makes one by one or looks up on demand: generators, views of dicts, ranges.
//!
//! They behave as Python's do: a generator is gone once it was read, and is true even if it is
//! empty; a view of a dict has no index. What Python prints with an address in memory gets a mark,
//! so that no conversation with it is kept.

use crate::template::placeholder::METHOD_MARK;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use minijinja::{Error, Value};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The address of printed objects without its last digit, for which a mark stands.
pub(crate) const ADDRESS: &str = "0x7f000000000";

/// Values that can be read once.
#[derive(Debug)]
pub(crate) struct Generator {
    name: &'static str,
    values: Vec<Value>,
    read: AtomicUsize,
}

/// The keys, values or entries of a dict.
#[derive(Debug)]
pub(crate) struct DictView {
    name: &'static str,
    values: Vec<Value>,
}

/// Python's `range`.
#[derive(Debug)]
pub(crate) struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
    pub length: usize,
}

/// Iterates over what a generator has left.
struct Left(Arc<Generator>);

impl Iterator for Left {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let at = self.0.read.fetch_add(1, Ordering::Relaxed);
        let next = self.0.values.get(at).cloned();
        if next.is_none() {
            self.0.read.store(self.0.values.len(), Ordering::Relaxed);
        }
        next
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.values.len().saturating_sub(self.0.read.load(Ordering::Relaxed));
        (left, Some(left))
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Left(self.clone())))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        // minijinja would count through the values.
        Some(Value::UNDEFINED)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.ends_with("iterator") {
            true => write!(f, "<{} object at {ADDRESS}{METHOD_MARK}>", self.name),
            false => write!(f, "<generator object {} at {ADDRESS}{METHOD_MARK}>", self.name),
        }
    }
}

impl Object for DictView {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let view = self.clone();
        let values = (0..self.values.len()).map(move |i| view.values[i].clone());
        Enumerator::RevIter(Box::new(values))
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }
}

impl Range {
    fn at(&self, index: usize) -> i64 {
        self.start + index as i64 * self.step
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.length)
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = i64::try_from(key.clone()).ok()?;
        let index = if index < 0 { index + self.length as i64 } else { index };
        let index = usize::try_from(index).ok().filter(|i| *i < self.length)?;
        Some(Value::from(self.at(index)))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            1 => write!(f, "range({}, {})", self.start, self.stop),
            step => write!(f, "range({}, {}, {step})", self.start, self.stop),
        }
    }
}

/// Values in the place of a list that can be read once.
pub(crate) fn generator(name: &'static str, list: &Value) -> Result<Value, Error> {
    let values = list.try_iter()?.collect();
    Ok(Value::from_object(Generator { name, values, read: AtomicUsize::new(0) }))
}

/// The name and the values of a view of a dict.
pub(crate) fn viewed(v: &Value) -> Option<(&'static str, &[Value])> {
    v.downcast_object_ref::<DictView>().map(|view| (view.name, view.values.as_slice()))
}

/// A view of a dict.
pub(crate) fn dict_view(name: &'static str, values: Vec<Value>) -> Value {
    Value::from_object(DictView { name, values })
}

/// Whether a value is a generator or a view of a dict, which keep what they are in a variable.
pub(crate) fn is_view(v: &Value) -> bool {
    is_generator(v) || v.downcast_object_ref::<DictView>().is_some()
}

/// Whether a value can be read once.
pub(crate) fn is_generator(v: &Value) -> bool {
    v.downcast_object_ref::<Generator>().is_some()
}

/// The values of a generator, read or not, without reading them.
pub(crate) fn unread(v: &Value) -> Option<&[Value]> {
    v.downcast_object_ref::<Generator>().map(|g| g.values.as_slice())
}

/// Whether a value is one that `json.dumps` refuses although it holds others.
pub(crate) fn is_no_json(v: &Value) -> bool {
    is_view(v) || v.downcast_object_ref::<Range>().is_some()
}

/// Whether a value is `loop` or a macro, which minijinja takes for maps.
pub(crate) fn is_engine_object(v: &Value) -> bool {
    let name = v.as_object().map_or("", |o| o.type_name());
    name.ends_with("::Loop") || name.ends_with("::Macro")
}
