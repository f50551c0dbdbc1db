//! jinja2's `cycler` and `joiner`, which count their calls.

use crate::template::python_guards::{nested, type_error};
use minijinja::value::{Object, Rest};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Adds the functions that make them.
pub(crate) fn add_counters(env: &mut Environment) {
    env.add_function("cycler", |state: &State, items: Rest<Value>| -> Result<Value, Error> {
        nested(state, Value::from(items.to_vec()))?;
        match items.is_empty() {
            true => Err(type_error("at least one item has to be provided".to_string())),
            false => {
                Ok(Value::from_object(Cycler { items: items.to_vec(), at: AtomicUsize::new(0) }))
            }
        }
    });
    env.add_function("joiner", |state: &State, separator: Option<Value>| {
        let separator = separator.unwrap_or_else(|| Value::from(", "));
        nested(state, Value::from(vec![separator.clone()]))?;
        Ok::<_, Error>(Value::from_object(Joiner { separator, used: AtomicUsize::new(0) }))
    });
}

/// jinja2's `cycler`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let current = self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone();
        (key.as_str() == Some("current")).then_some(current)
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State,
        name: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        match name {
            "next" => {
                let at = self.at.fetch_add(1, Ordering::Relaxed);
                Ok(self.items[at % self.items.len()].clone())
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// jinja2's `joiner`: nothing on the first call, then the separator.
#[derive(Debug)]
struct Joiner {
    separator: Value,
    used: AtomicUsize,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State, _: &[Value]) -> Result<Value, Error> {
        Ok(match self.used.fetch_add(1, Ordering::Relaxed) {
            0 => Value::from(""),
            _ => self.separator.clone(),
        })
    }
}
