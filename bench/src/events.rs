//! What the daemon's log says, as it says it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use gpulet_client::clock::now_ns;

use crate::error::{Doing, Error};

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC, to the microsecond.
    pub at_ns: u64,
    /// What is said, with its fields.
    pub text: String,
}

impl Event {
    /// The value of a field, without the quotes of a text.
    pub fn field(&self, name: &str) -> Option<&str> {
        let start = self.text.find(&format!(" {name}="))? + name.len() + 2;
        let value = &self.text[start..];
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None if value.starts_with('[') => value.find(']').map(|end| &value[..=end]),
            None => value.split_whitespace().next(),
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }
}

/// Reads what is new.
#[derive(Debug)]
pub struct Events {
    file: File,
    rest: Vec<u8>,
}

impl Events {
    /// From the beginning on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(log: &Path) -> Result<Events, Error> {
        let file = File::open(log).doing("opening the daemon's log")?;
        Ok(Events { file, rest: Vec::new() })
    }

    /// Whole lines that came since it was asked last.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn news(&mut self) -> Result<Vec<Event>, Error> {
        self.file.read_to_end(&mut self.rest).doing("reading the daemon's log")?;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let (clock, ns) = (SystemTime::now(), now_ns());
        let text = String::from_utf8_lossy(&whole);
        Ok(text.lines().filter_map(|line| event(line, clock, ns)).collect())
    }
}

/// A line, by two clocks that were read together.
fn event(line: &str, clock: SystemTime, ns: u64) -> Option<Event> {
    let (time, rest) = line.split_once(' ')?;
    let time = humantime::parse_rfc3339(time).ok()?;
    let at_ns = match clock.duration_since(time) {
        Ok(ago) => ns.saturating_sub(u64::try_from(ago.as_nanos()).ok()?),
        Err(ahead) => ns + u64::try_from(ahead.duration().as_nanos()).ok()?,
    };
    // Level and place come first.
    let text = rest.split_once(": ").map_or(rest, |(_, text)| text);
    Some(Event { at_ns, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn lines_have_a_time_and_fields() {
        let line = "2026-11-22T20:00:00.250000Z  INFO gpulet_daemon::server::sharing: shares \
                    changed executor=\"green:0\" shares_pct=[80, 20] decided_ns=17 switch_us=5";
        let clock = UNIX_EPOCH + Duration::from_secs(1_795_377_601);
        let event = event(line, clock, 5_000_000_000).unwrap();
        assert_eq!(event.at_ns, 4_250_000_000);
        assert!(event.text.starts_with("shares changed "));
        assert_eq!(event.field("executor"), Some("green:0"));
        assert_eq!(event.field("shares_pct"), Some("[80, 20]"));
        assert_eq!((event.number("decided_ns"), event.number("switch_us")), (Some(17), Some(5)));
        assert_eq!(event.field("switch"), None);
    }

    #[test]
    fn what_is_no_line_of_the_log_is_passed_over() {
        assert_eq!(event("terminate called without an exception", SystemTime::now(), 1), None);
        assert_eq!(event("", SystemTime::now(), 1), None);
    }
}
