//! A share of the processors for a server, where there are not enough processors to give each one its own: a control group of Linux
//! with a quota. That makes a small machine of it, whatever else runs.

use foreshard_test::process::{children, wait_until};
use foreshard_test::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of what the kernel gives out a quota; short, so that a question of a millisecond does not wait long for the next.
const PERIOD_US: u32 = 5_000;

/// A control group, removed when it is dropped; its processes must have ended then.
pub struct Share {
    directory: PathBuf,
}

impl Share {
    /// A group that may use so much of one processor.
    ///
    /// # Errors
    /// When there are no control groups that this user may make.
    pub fn of(name: &str, processors: f64) -> Result<Share> {
        let quota_us = (f64::from(PERIOD_US) * processors).round();
        // Both kinds of hierarchies that kernels have, with the file that takes the quota.
        let old = Path::new("/sys/fs/cgroup/cpu");
        let (root, limits) = if old.join("cpu.cfs_quota_us").exists() {
            (
                old,
                vec![
                    ("cpu.cfs_period_us", PERIOD_US.to_string()),
                    ("cpu.cfs_quota_us", format!("{quota_us:.0}")),
                ],
            )
        } else {
            (Path::new("/sys/fs/cgroup"), vec![("cpu.max", format!("{quota_us:.0} {PERIOD_US}"))])
        };
        let directory = root.join(format!("foreshard-{}-{name}", std::process::id()));
        let none = |error: std::io::Error| {
            Error::new(
                format!("No control group could be made: {error}."),
                "Nodes need a processor each, or a user who may make control groups below /sys/fs/cgroup.",
            )
        };
        fs::create_dir(&directory).map_err(none)?;
        let share = Share { directory };
        for (file, value) in limits {
            fs::write(share.directory.join(file), value).map_err(none)?;
        }
        Ok(share)
    }

    /// Takes a process and its children in; those they start later come with them.
    pub fn take(&self, pid: i32) -> Result<()> {
        for pid in children(pid).into_iter().chain([pid]) {
            // A child may have ended meanwhile.
            let _ = fs::write(self.directory.join("cgroup.procs"), pid.to_string());
        }
        let inside = fs::read_to_string(self.directory.join("cgroup.procs"))?;
        if inside.lines().any(|line| line == pid.to_string()) {
            return Ok(());
        }
        Err(Error::new(format!("Process {pid} could not be given its share."), ""))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // The kernel keeps a group as long as one of its processes is ending.
        let gone = wait_until("a control group is empty", Duration::from_secs(5), || {
            Ok(fs::remove_dir(&self.directory).is_ok())
        });
        if let Err(error) = gone {
            eprintln!("{} is left: {error}", self.directory.display());
        }
    }
}
