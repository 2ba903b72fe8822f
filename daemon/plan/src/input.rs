//! What is wrong with an input, and the fields of a line of comma-separated values.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The rule that an input breaks, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct InputError {
    /// Name of the file, as it was given.
    pub file: String,
    /// Line from 1; 0 where the file as a whole is wrong.
    pub line: usize,
    /// The field, column or key.
    pub field: String,
    /// What it must be, and what it is.
    pub rule: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, field, rule } = self;
        match line {
            0 => write!(out, "{file}: {field}: {rule}"),
            _ => write!(out, "{file}:{line}: {field}: {rule}"),
        }
    }
}

impl InputError {
    /// An error of the file as a whole.
    pub fn whole(file: &str, field: &str, rule: impl Into<String>) -> Self {
        Self { file: file.into(), line: 0, field: field.into(), rule: rule.into() }
    }
}

/// One line of a file of comma-separated values.
#[derive(Debug, Clone)]
pub(crate) struct Record<'a> {
    file: &'a str,
    line: usize,
    fields: Vec<&'a str>,
}

/// The lines that hold anything, with a trailing comma's empty field dropped.
pub(crate) fn records<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Record<'a>> {
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(move |(at, line)| {
        let mut fields: Vec<&str> = line.split(',').map(str::trim).collect();
        if fields.len() > 1 && fields.last() == Some(&"") {
            fields.pop();
        }
        Record { file, line: at + 1, fields }
    })
}

impl<'a> Record<'a> {
    pub(crate) fn error(&self, field: &str, rule: impl Into<String>) -> InputError {
        InputError {
            file: self.file.into(),
            line: self.line,
            field: field.into(),
            rule: rule.into(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    /// Column `index`, from 0; not empty.
    pub(crate) fn text(&self, index: usize, field: &str) -> Result<&'a str, InputError> {
        match self.fields.get(index) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.error(field, format!("must be given in column {}", index + 1))),
        }
    }

    /// A whole number in column `index`, `least` to `most`.
    pub(crate) fn whole<T: FromStr + PartialOrd + fmt::Display>(
        &self,
        index: usize,
        field: &str,
        (least, most): (T, T),
    ) -> Result<T, InputError> {
        let text = self.text(index, field)?;
        match text.parse::<T>() {
            Ok(value) if value >= least && value <= most => Ok(value),
            _ => Err(self.error(
                field,
                format!("must be a whole number {least} to {most}, is {:?}", shown(text)),
            )),
        }
    }

    /// A finite number in column `index`, `least` to `most`.
    pub(crate) fn number(
        &self,
        index: usize,
        field: &str,
        (least, most): (f64, f64),
    ) -> Result<f64, InputError> {
        let text = self.text(index, field)?;
        match text.parse::<f64>() {
            Ok(value) if value >= least && value <= most => Ok(value),
            _ => Err(self
                .error(field, format!("must be a number {least} to {most}, is {:?}", shown(text)))),
        }
    }
}

/// As much of a found text as a message should carry.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_comma_and_blank_lines_do_not_count() {
        let text = "a,1,\n\n b , 2\n";
        let records: Vec<_> = records("f", text).collect();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].line, 3);
        assert_eq!(records[1].text(0, "name"), Ok("b"));
        assert_eq!(records[0].len(), 2);
    }

    #[test]
    fn errors_say_file_line_field_and_rule() {
        let text = "a,x";
        let Some(record) = records("rates.csv", text).next() else { panic!("a line") };
        let error = record.whole::<u32>(1, "rate", (0, 9)).unwrap_err();
        assert_eq!(error.to_string(), "rates.csv:1: rate: must be a whole number 0 to 9, is \"x\"");
        assert!(record.number(1, "rate", (0.0, 9.0)).is_err());
        assert!(record.number(2, "slo", (0.0, 9.0)).is_err());
        assert_eq!(
            InputError::whole("f", "GPUs", "must be given").to_string(),
            "f: GPUs: must be given"
        );
    }
}
