//! Arguments of Python's methods and jinja2's filters, by position or by name.

use crate::template::python_guards::type_error;
use minijinja::value::{Kwargs, Rest, from_args};
use minijinja::{Error, ErrorKind, Value};

/// Arguments by position or by name.
pub(crate) struct Arguments {
    values: Vec<Value>,
    named: Kwargs,
}

impl Arguments {
    /// The arguments of a method; at most `most` by position.
    pub(crate) fn of(args: &[Value], most: usize) -> Result<Self, Error> {
        let (values, named): (Rest<Value>, Kwargs) = from_args(args)?;
        if values.len() > most {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        Ok(Arguments { values: values.to_vec(), named })
    }

    /// The arguments of a filter.
    pub(crate) fn new(values: Rest<Value>, named: Kwargs) -> Self {
        Arguments { values: values.to_vec(), named }
    }

    /// An argument; none if it was not given.
    pub(crate) fn get(&self, i: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.values.get(i) {
            Some(v) => Ok(Some(v.clone())),
            None => self.named.get(name),
        }
    }

    /// A text; none if it was not given or is none.
    pub(crate) fn text(&self, i: usize, name: &str) -> Result<Option<String>, Error> {
        match self.get(i, name)?.filter(|v| !v.is_none()) {
            None => Ok(None),
            Some(v) => match v.as_str() {
                Some(s) => Ok(Some(s.to_string())),
                None => Err(type_error(format!("{name} must be str, not {}", v.kind()))),
            },
        }
    }

    /// A text that must be given.
    pub(crate) fn required(&self, i: usize, name: &str) -> Result<String, Error> {
        self.text(i, name)?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
    }

    /// The truth of an argument, `default` where it was not given.
    pub(crate) fn flag(&self, i: usize, name: &str, default: bool) -> Result<bool, Error> {
        Ok(self.get(i, name)?.map_or(default, |v| v.is_true()))
    }

    /// A whole number, `default` where it was not given or is none.
    pub(crate) fn number(&self, i: usize, name: &str, default: i64) -> Result<i64, Error> {
        match self.get(i, name)?.filter(|v| !v.is_none()) {
            None => Ok(default),
            Some(v) => i64::try_from(v),
        }
    }

    /// Refuses arguments with other names.
    pub(crate) fn no_others(&self) -> Result<(), Error> {
        self.named.assert_all_used()
    }
}
