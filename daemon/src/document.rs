//! A hand-written TOML file: read, parsed, and everything wrong with it collected with its line.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;

/// Bytes of the longest file that is read.
pub const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In which file.
    pub file: PathBuf,
    /// In which line, from 1, where it is known.
    pub line: Option<usize>,
    /// The field, such as `limits.queue_max`; empty where the file as a whole is wrong.
    pub field: String,
    /// What it must be, and what it is.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.rule)
    }
}

/// Problems, one a line.
pub fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads a whole text file, never waiting for one that is no file and never more than
/// [`DOCUMENT_BYTES_MAX`].
///
/// # Errors
/// What the kernel says; `InvalidInput` for what is no regular file, `FileTooLarge`, `InvalidData`
/// for what is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    // Asked before opening, because opening a FIFO waits for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(DOCUMENT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > DOCUMENT_BYTES_MAX {
        let rule = format!("has more than {DOCUMENT_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, rule));
    }
    Ok(text)
}

/// A file's text while it is being checked.
#[derive(Debug)]
pub struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Document<'a> {
    /// Nothing wrong so far. `path` is for messages only.
    pub fn new(path: &'a Path, text: &'a str) -> Document<'a> {
        Document { path, text, problems: Vec::new() }
    }

    /// The text as a `T`; `None` after noting why not.
    pub fn parse<T: DeserializeOwned>(&mut self) -> Option<T> {
        let document = match toml::Deserializer::parse(self.text) {
            Ok(document) => document,
            Err(error) => {
                self.problem("", error.span(), format!("is no TOML: {}", one_line(&error)));
                return None;
            }
        };
        match serde_path_to_error::deserialize(document) {
            Ok(value) => Some(value),
            Err(error) => {
                let field = field_name(error.path());
                self.problem(field, error.inner().span(), one_line(error.inner()));
                None
            }
        }
    }

    /// Notes a broken rule, at `span` of the text where that is known.
    pub fn problem(
        &mut self,
        field: impl Into<String>,
        span: Option<Range<usize>>,
        rule: impl Into<String>,
    ) {
        let line = span.and_then(|span| {
            let before = self.text.as_bytes().get(..span.start)?;
            Some(before.iter().filter(|byte| **byte == b'\n').count() + 1)
        });
        let (field, rule) = (field.into(), rule.into());
        self.problems.push(Problem { file: self.path.to_owned(), line, field, rule });
    }

    /// An integer that must lie in `range`; `default` if it is absent, or after noting that it
    /// does not.
    pub fn integer(
        &mut self,
        field: &str,
        value: Option<&Spanned<i64>>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let Some(value) = value else { return default };
        match u64::try_from(*value.get_ref()).ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let (low, high) = range.into_inner();
                let rule = format!("must be {low} to {high}, is {}", value.get_ref());
                self.problem(field, Some(value.span()), rule);
                default
            }
        }
    }

    /// As [`integer`](Self::integer), for ranges within `u32`.
    ///
    /// # Panics
    /// If `range` or `default` are beyond `u32`.
    pub fn integer_u32(
        &mut self,
        field: &str,
        value: Option<&Spanned<i64>>,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> u32 {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let number = self.integer(field, value, u64::from(default), range);
        u32::try_from(number).unwrap_or(default)
    }

    /// Everything noted.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().trim_end().replace('\n', ", ")
}

/// The dotted path, without the pseudo-fields that carry spans.
fn field_name(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut name = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => name.push_str(&format!("[{index}]")),
            Segment::Map { key } if !key.starts_with("$__") => {
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(key);
            }
            _ => {}
        }
    }
    name
}

/// Why `name` cannot name a model or a gpulet; `None` if it can.
///
/// Names become parts of paths, of wire frames (64 bytes with the final NUL) and of command lines.
pub fn broken_name_rule(name: &str) -> Option<String> {
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-')
    };
    let fits = name.len() < gpulet_abi::layout::NAME_BYTES;
    (!starts_well || !fits || !name.bytes().all(allowed)).then(|| {
        format!(
            "must be 1 to {} of a-z, 0-9, '_', '.' and '-', the first a letter or digit, \
             is {name:?}",
            gpulet_abi::layout::NAME_BYTES - 1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only ever parsed in vain")]
    struct Outer {
        list: Vec<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only ever parsed in vain")]
    struct Inner {
        number: Option<Spanned<i64>>,
    }

    fn problem_of(text: &str) -> String {
        let mut document = Document::new(Path::new("file.toml"), text);
        assert!(document.parse::<Outer>().is_none());
        lines(&document.into_problems())
    }

    #[test]
    fn types_and_keys_are_named_with_their_line() {
        assert_eq!(
            problem_of("[[list]]\nnumber = 1\n[[list]]\nnumber = 'a'\n"),
            "file.toml:4: list[1].number: invalid type: string \"a\", expected i64"
        );
        let unknown = problem_of("[[list]]\nother = 1\n");
        assert!(unknown.starts_with("file.toml:2: list[0].other: unknown field"), "{unknown}");
        let broken = problem_of("\n\n[[list]\n");
        assert!(broken.starts_with("file.toml:3: is no TOML: "), "{broken}");
        let missing = problem_of("");
        assert!(missing.contains("missing field `list`"), "{missing}");
    }

    #[test]
    fn names_have_a_rule() {
        for name in ["a", "0", "mnasnet1_0", "a.b-c", &"x".repeat(63)] {
            assert_eq!(broken_name_rule(name), None, "{name}");
        }
        for name in ["", ".", "-x", "_x", "A", "a/b", "a b", "\u{e9}", &"x".repeat(64)] {
            assert!(broken_name_rule(name).is_some(), "{name}");
        }
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_text(folder.path()).unwrap_err().to_string().contains("no regular file"));
        let big = folder.path().join("big");
        File::create(&big).unwrap().set_len(DOCUMENT_BYTES_MAX + 1).unwrap();
        assert_eq!(read_text(&big).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
