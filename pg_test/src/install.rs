//! Where a staged PostgreSQL lies and which operating-system user runs it.

use crate::error::{Error, Result};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The unprivileged user of the servers.
#[derive(Clone, Debug)]
pub struct OsUser {
    /// Set when the harness runs as root and has to become somebody else: uid and gid.
    pub drop_to: Option<(u32, u32)>,
}

impl OsUser {
    /// `postgres`, else `foreshard`, when run as root; otherwise the caller.
    pub fn find() -> Result<OsUser> {
        // The owner of one's own process is its effective user.
        if fs::metadata("/proc/self")?.uid() != 0 {
            return Ok(OsUser { drop_to: None });
        }
        for name in ["postgres", "foreshard"] {
            if let Some(ids) = look_up(name) {
                return Ok(OsUser { drop_to: Some(ids) });
            }
        }
        Err(Error::new(
            "There is no user \"postgres\" or \"foreshard\" to run a server as.",
            "Run scripts/bootstrap.sh; PostgreSQL refuses to run as root.",
        ))
    }

    /// A command that will run as this user.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.drop_to {
            command.uid(uid).gid(gid);
        }
        for (name, _) in std::env::vars() {
            if name.starts_with("PG") {
                command.env_remove(name);
            }
        }
        // A caller's wish for backtraces would end up in the DETAIL of the servers' errors.
        command.env_remove("RUST_BACKTRACE").env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }

    /// Gives a file or directory to this user.
    pub fn give(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.drop_to {
            chown(path, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

/// The uid and gid of a user of this machine.
fn look_up(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let entry = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))?;
    Some((entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?))
}

/// A staged installation of one major version, made by `scripts/stage.sh`.
#[derive(Clone, Debug)]
pub struct Install {
    /// 15 to 18.
    pub major: u32,
    /// The directory of `postgres`, `psql` and the rest.
    pub bin_dir: PathBuf,
    /// The run directory: staged installations, templates, clusters.
    pub run_dir: PathBuf,
    /// Who runs the servers.
    pub user: OsUser,
}

impl Install {
    /// The installation that `FORESHARD_PG` names (default 15).
    pub fn from_env() -> Result<Install> {
        let text = std::env::var("FORESHARD_PG").unwrap_or_else(|_| "15".into());
        let major = text.parse().map_err(|_| {
            Error::new(format!("FORESHARD_PG is \"{text}\"."), "It is a major version: 15 to 18.")
        })?;
        Install::of(major)
    }

    /// The installation of a major version.
    pub fn of(major: u32) -> Result<Install> {
        let run_dir = run_dir()?;
        let note = run_dir.join(format!("pg{major}.path"));
        let bin_dir = fs::read_to_string(&note).map_err(|_| {
            Error::new(
                format!("PostgreSQL {major} is not staged."),
                format!("Run scripts/stage.sh {major} release."),
            )
        })?;
        Ok(Install { major, bin_dir: PathBuf::from(bin_dir.trim()), run_dir, user: OsUser::find()? })
    }

    /// The path of a program of this installation.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// The path of a test driver (`regress/pg_regress`).
    pub fn test_driver(&self, name: &str) -> Result<PathBuf> {
        let output = run(Command::new(self.program("pg_config")).arg("--pgxs"))?;
        let makefile = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let source = makefile.ancestors().nth(2).unwrap_or(Path::new("/"));
        Ok(source.join("test").join(name))
    }
}

/// `FORESHARD_RUN`, or what the scripts wrote down.
fn run_dir() -> Result<PathBuf> {
    if let Ok(dir) = std::env::var("FORESHARD_RUN") {
        return Ok(PathBuf::from(dir));
    }
    let note = repository().join("target/run.path");
    let dir = fs::read_to_string(note)
        .map_err(|_| Error::new("Nothing is staged.", "Run scripts/bootstrap.sh first."))?;
    Ok(PathBuf::from(dir.trim()))
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Runs a command to its end; its output when it succeeded.
pub fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|error| Error::new(format!("{program} cannot be run: {error}."), ""))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(Error::new(format!("{program} failed ({}): {said}", output.status), ""));
    }
    Ok(output)
}
