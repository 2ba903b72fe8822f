//! What help and man pages say beyond flags, written once.

use std::fmt::Write;

/// A heading and what is under it: terms, each with a line about it.
pub(super) struct Section {
    /// As man pages name it.
    pub title: &'static str,
    pub entries: &'static [(&'static str, &'static str)],
}

/// How `gpuletctl` ends.
pub(super) const CTL: &[Section] = &[
    Section {
        title: "EXIT STATUS",
        entries: &[
            ("0", "done"),
            ("1", "the request or operation failed"),
            ("2", "wrong usage"),
            ("3", "the daemon cannot be reached, or refused"),
            ("4", "the configuration or a model is bad"),
        ],
    },
    Section {
        title: "ENVIRONMENT",
        entries: &[("GPULET_SOCKET", "the daemon's socket, unless --socket says which")],
    },
];

/// How `gpuletd` is controlled, and ends.
pub(super) const DAEMON: &[Section] = &[
    Section {
        title: "SIGNALS",
        entries: &[
            ("SIGTERM, SIGINT", "take nothing new, finish what is in flight, exit"),
            ("SIGHUP", "read configuration and models again; keep the old ones if the new are bad"),
        ],
    },
    Section {
        title: "EXIT STATUS",
        entries: &[
            ("0", "stopped as asked"),
            ("1", "could not start or go on; the log says why"),
            ("2", "wrong usage"),
            ("78", "the configuration is bad"),
        ],
    },
    Section {
        title: "ENVIRONMENT",
        entries: &[("GPULET_LOG", "what is logged, such as debug; info without it")],
    },
];

/// For the end of `--help`.
pub(super) fn help(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let mut title = section.title.to_lowercase();
        title[..1].make_ascii_uppercase();
        let width = section.entries.iter().map(|(term, _)| term.len()).max().unwrap_or(0);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{title}:");
        for (term, about) in section.entries {
            let _ = writeln!(text, "  {term:width$}  {about}");
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// For the end of a man page.
pub(super) fn roff(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let _ = writeln!(text, ".SH \"{}\"", section.title);
        for (term, about) in section.entries {
            let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{}", escape(term), escape(about));
        }
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_man_page_say_the_same() {
        let sections = [Section { title: "EXIT STATUS", entries: &[("0", "a-b"), ("10", "it's")] }];
        assert_eq!(help(&sections), "Exit status:\n  0   a-b\n  10  it's");
        let page = ".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\na\\-b\n.TP\n\\fB10\\fR\nit\\(aqs\n";
        assert_eq!(roff(&sections), page);
    }
}
