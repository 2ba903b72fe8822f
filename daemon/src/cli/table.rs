//! Text tables and durations for people.

/// Columns as wide as their widest cell, two spaces apart; those whose cells all start with a digit
/// are flush right.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut lines: Vec<String> = vec![String::new(); rows.len() + 1];
    for (index, title) in header.iter().enumerate() {
        let cells: Vec<&str> =
            rows.iter().map(|row| row.get(index).map_or("", String::as_str)).collect();
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        let width = width.max(title.len());
        let numeric = cells.iter().all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()));
        for (line, cell) in lines.iter_mut().zip([*title].iter().chain(&cells)) {
            let gap = if index == 0 { "" } else { "  " };
            let cell = if numeric && !rows.is_empty() {
                format!("{gap}{cell:>width$}")
            } else {
                format!("{gap}{cell:<width$}")
            };
            line.push_str(&cell);
        }
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Three digits and a unit.
pub(super) fn duration(ns: u64) -> String {
    let ns = ns as f64;
    let (value, unit) = match ns {
        ns if ns < 1e3 => return format!("{ns} ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    match value {
        value if value < 9.995 => format!("{value:.2} {unit}"),
        value if value < 99.95 => format!("{value:.1} {unit}"),
        value => format!("{value:.0} {unit}"),
    }
}

/// Days to seconds, the two largest.
pub(super) fn uptime(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// A number of bytes with a binary unit.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "9".to_owned()]];
        assert_eq!(table(&["name", "n"], &rows), "name   n\na     10\nlong   9\n");
        assert_eq!(table(&["name", "n"], &[]), "name  n\n");
    }

    #[test]
    fn durations_have_three_digits() {
        let said = [0, 999, 1_000, 9_994, 9_995, 123_456, 999_999, 1_500_000, 62_000_000_000];
        let said = said.map(duration);
        let expected = [
            "0 ns", "999 ns", "1.00 us", "9.99 us", "10.0 us", "123 us", "1000 us", "1.50 ms",
            "62.0 s",
        ];
        assert_eq!(said, expected);
        assert_eq!(uptime(59_000_000_000), "59 s");
        assert_eq!(uptime(3_700_000_000_000), "1 h 1 min");
        assert_eq!(uptime(90_000_000_000_000), "1 d 1 h");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
    }
}
