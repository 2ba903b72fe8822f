//! Man pages and shell completions, from the definitions that also parse.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, CtlError, daemon, print_bytes};

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
        let write = |path: &Path, source| CtlError::File { path: path.to_owned(), source };
        fs::create_dir_all(&self.directory).map_err(|error| write(&self.directory, error))?;
        // Sections: 1 programs of users, 8 those of administrators.
        let ctl = Arguments::command().disable_help_subcommand(true);
        clap_mangen::generate_to(ctl, &self.directory)
            .map_err(|error| write(&self.directory, error))?;
        let path = self.directory.join("gpuletd.8");
        let mut page = Vec::new();
        clap_mangen::Man::new(daemon::Arguments::command())
            .section("8")
            .render(&mut page)
            .and_then(|()| fs::write(&path, page))
            .map_err(|error| write(&path, error))
    }
}
