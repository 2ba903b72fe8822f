//! Man pages and shell completions, from the definitions that also parse.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::manual::Section;
use super::{Arguments, CtlError, daemon, manual, print_bytes};

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "gpuletctl", &mut script);
        print_bytes(&script)
    }
}

/// Write the man pages of gpuletctl, its subcommands and gpuletd into a directory
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct ManPages {
    /// The directory; made if it is not there
    directory: PathBuf,
}

impl ManPages {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        fs::create_dir_all(&self.directory)
            .map_err(|source| CtlError::File { path: self.directory.clone(), source })?;
        let mut ctl = Arguments::command().disable_help_subcommand(true);
        // Gives the subcommands their full names.
        ctl.build();
        for subcommand in ctl.get_subcommands().filter(|it| !it.is_hide_set()) {
            self.write(subcommand, 1, manual::CTL)?;
        }
        self.write(&ctl, 1, manual::CTL)?;
        self.write(&daemon::Arguments::command(), 8, manual::DAEMON)
    }

    /// Sections are 1 for programs of users and 8 for those of administrators.
    fn write(&self, command: &Command, section: u8, more: &[Section]) -> Result<(), CtlError> {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = self.directory.join(format!("{name}.{section}"));
        let mut page = Vec::new();
        render(command, section, &mut page)
            .and_then(|()| page.write_all(manual::roff(more).as_bytes()))
            .and_then(|()| fs::write(&path, page))
            .map_err(|source| CtlError::File { path, source })
    }
}

/// Everything but the help's end, which a man page has in sections of its own.
fn render(command: &Command, section: u8, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone()).section(section.to_string());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    Ok(())
}
